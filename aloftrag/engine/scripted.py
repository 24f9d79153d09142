"""An engine that answers from a function: for tests of everything around a language model."""

import asyncio
from collections.abc import Callable

from aloftrag.engine.port import Completion
from aloftrag.prompts.chat import Prompt


class ScriptedEngine:
    """``reply(prompt)`` gives the completion; None stands for a reply that the token limit cut."""

    def __init__(self, reply: Callable[[Prompt], str | None], seconds: float = 0.0, max_num_seqs: int = 256):
        self._reply = reply
        self._seconds = seconds
        self.max_num_seqs = max_num_seqs
        self.is_dead = False

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``aloftrag.engine.port.Engine``."""
        await asyncio.sleep(self._seconds)
        text = self._reply(prompt)
        return Completion("", ended=False) if text is None else Completion(text, ended=True, tokens=len(text.split()))

    def close(self) -> None:
        """Nothing was started."""
