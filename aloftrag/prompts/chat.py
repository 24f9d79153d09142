"""From chat messages to token ids: one function for training and for answering (design: trained as it is asked).

Text is data: only the template's own parts may hold control tokens. Whatever stands inside a message is tokenised with
special tokens disabled, so a document that contains ``<|im_end|>`` cannot end its turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # system, user or assistant
    content: str


def message(role: str, content: str) -> Message:
    """A turn, trimmed: templates differ in whether they trim, so we always do."""
    return {"role": role, "content": content.strip()}


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered chat: a part of the template, or the content of message number ``turn``."""

    text: str
    turn: int | None


def render(tokenizer: Any, messages: Sequence[Message], *, ask: bool) -> list[Piece]:
    """The rendered chat as pieces; with ``ask`` it ends where the assistant begins to write.

    A template without a system role (Gemma's, Mistral's) gets the system message in front of the first user message.
    """
    marks = [f"CONTENT{number}MARK" for number in range(len(messages))]
    marked = [{"role": turn["role"], "content": mark} for turn, mark in zip(messages, marks, strict=True)]
    rendered = _apply_template(tokenizer, marked, ask)
    pieces = []
    for number, mark in enumerate(marks):
        before, found, rendered = rendered.partition(mark)
        assert found, f"the chat template leaves out message {number} ({messages[number]['role']})"
        pieces += [Piece(before, None), Piece(messages[number]["content"], number)]
    return [*pieces, Piece(rendered, None)]


def _apply_template(tokenizer: Any, messages: list[dict[str, str]], ask: bool) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except TemplateError:
        if messages[0]["role"] != "system":
            raise
    system, first, *rest = messages
    first = {"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}
    return tokenizer.apply_chat_template([first, *rest], tokenize=False, add_generation_prompt=ask)


def encode_template(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a part of the template: its special tokens are special."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def encode_content(tokenizer: Any, text: str) -> list[int]:
    """Token ids of what stands inside a message: nothing in it is special."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []


def prompt_ids(tokenizer: Any, messages: Sequence[Message], prefill: str = "") -> list[int]:
    """Token ids of a chat up to where the assistant goes on writing after ``prefill``."""
    ids: list[int] = []
    for piece in render(tokenizer, messages, ask=True):
        ids += encode_template(tokenizer, piece.text) if piece.turn is None else encode_content(tokenizer, piece.text)
    return ids + encode_content(tokenizer, prefill)


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation whose last reply begins with ``prefill``; ``form`` is a regular expression of what follows.

    A reply that does not end by itself within ``max_tokens`` counts as none.
    """

    messages: list[Message]
    max_tokens: int
    prefill: str = ""
    form: str | None = None

    def token_ids(self, tokenizer: Any) -> list[int]:
        """The prompt as the model reads it."""
        return prompt_ids(tokenizer, self.messages, self.prefill)


@dataclass(frozen=True)
class PlainPrompt:
    """Plain text to be continued up to ``stop``, without a chat template; ``form`` as above.

    Models too small to follow an instruction do follow a row of worked examples, and far better so than as chat turns: of
    SmolLM2-135M's answers 62 % stood in the text, against 8 % with the same examples as turns.
    """

    text: str
    max_tokens: int
    stop: str
    form: str | None = None

    def token_ids(self, tokenizer: Any) -> list[int]:
        """The prompt as the model reads it; nothing in it is special."""
        return encode_content(tokenizer, self.text)


Prompt = ChatPrompt | PlainPrompt
