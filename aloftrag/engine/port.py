"""The port to a language model: a prompt goes in, a completion comes out. Steps know nothing else of an engine."""

from dataclasses import dataclass
from typing import Protocol

from aloftrag.prompts.chat import Prompt


class PromptTooLong(ValueError):
    """A prompt leaves no room for its reply in the model's context: an error of the row, not of the engine."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote after the prompt."""

    text: str
    ended: bool  # False when the token limit cut it


class Engine(Protocol):
    """Answers many prompts at once; replies are greedy."""

    async def complete(self, prompt: Prompt) -> Completion:
        """What the model writes after a prompt; it keeps the prompt's form where the engine can hold it to one.

        Raises ``PromptTooLong`` when the prompt and its longest reply exceed the model's context.
        """
        ...

    def close(self) -> None:
        """End what the engine started."""
        ...
