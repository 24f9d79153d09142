"""The port to a language model: a prompt goes in, a completion comes out. Steps know nothing else of an engine."""

from dataclasses import dataclass
from typing import Protocol

from aloftrag.prompts.chat import Prompt


class PromptTooLong(ValueError):
    """A prompt leaves no room for its reply in the model's context: an error of the row, not of the engine."""


class EngineDead(RuntimeError):
    """The engine has died and answers no more: its actor ends, and another one begins where it was."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote after the prompt."""

    text: str
    ended: bool  # False when the token limit cut it
    first_tokens: dict[str, float] | None = None  # probabilities of the candidates for the first token, where the prompt wants them


class Engine(Protocol):
    """Answers many prompts at once, ``max_num_seqs`` of them side by side; replies are greedy."""

    max_num_seqs: int

    @property
    def is_dead(self) -> bool:
        """Whether the engine has died, and what it was asked is never answered."""
        ...

    async def complete(self, prompt: Prompt) -> Completion:
        """What the model writes after a prompt; it keeps the prompt's form where the engine can hold it to one.

        Raises ``PromptTooLong`` when the prompt and its longest reply exceed the model's context, ``EngineDead`` when the engine died.
        """
        ...

    def close(self) -> None:
        """End what the engine started."""
        ...
