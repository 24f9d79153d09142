"""The port to a language model: a prompt goes in, a completion comes out. Steps know nothing else of an engine."""

from dataclasses import dataclass
from typing import Protocol

from aloftrag.prompts.chat import Prompt


class PromptRefused(ValueError):
    """An engine does not take a prompt: an error of the row, not of the engine."""

    @classmethod
    def too_long(cls, prompt_tokens: int, reply_tokens: int, context_tokens: int) -> "PromptRefused":
        """A prompt that leaves no room for its longest reply in the model's context."""
        return cls(f"text too long: {prompt_tokens} tokens and {reply_tokens} for the reply, but the model takes {context_tokens}")


class EngineDead(RuntimeError):
    """The engine has died and answers no more: its actor ends, and another one begins where it was."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote after the prompt."""

    text: str
    ended: bool  # False when the token limit cut it
    tokens: int = 0  # of prompt and reply
    # Where the prompt wants alternatives:
    first_tokens: dict[str, float] | None = None  # probabilities of the candidates for the first token
    logprob: float | None = None  # of the whole text


class Engine(Protocol):
    """Answers many prompts at once, ``max_num_seqs`` of them side by side; replies are greedy."""

    max_num_seqs: int

    @property
    def is_dead(self) -> bool:
        """Whether the engine has died, and what it was asked is never answered."""
        ...

    async def complete(self, prompt: Prompt) -> Completion:
        """What the model writes after a prompt; it keeps the prompt's form where the engine can hold it to one.

        Raises ``PromptRefused``, such as for a prompt that with its longest reply exceeds the context, ``EngineDead`` when the engine died.
        """
        ...

    def close(self) -> None:
        """End what the engine started."""
        ...
