"""From chat messages to token ids: one function for training and for answering (design: trained as it is asked).

Text is data: only the template's own parts may hold control tokens. Whatever stands inside a message is tokenised with
special tokens disabled, so a document that contains ``<|im_end|>`` cannot end its turn.
"""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

_DAY = datetime.date(2025, 1, 1)  # for templates that tell the model what day it is: the same when it is trained and when it is asked


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

    A template without a system role (Gemma's), or one that shows it only in the last turn (Mistral's), gets the system message
    in front of the first user message.
    """
    from jinja2 import TemplateError

    def rendered(marked: list[Message]) -> str:
        return str(tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=ask, strftime_now=_DAY.strftime))

    marks = [f"CONTENT{number}MARK" for number in range(len(messages))]
    marked = [message(turn["role"], mark) for turn, mark in zip(messages, marks, strict=True)]
    contents = [turn["content"] for turn in messages]
    try:
        return _pieces(rendered(marked), marks, contents)
    except (TemplateError, _MessageMissing):
        if messages[0]["role"] != "system":
            raise
    system, first, *rest = marked
    merged = [message(first["role"], f"{system['content']}\n\n{first['content']}"), *rest]
    return _pieces(rendered(merged), marks, contents)


class _MessageMissing(ValueError):
    """A chat template leaves out a message, or changes the order."""


def _pieces(rendered: str, marks: list[str], contents: list[str]) -> list[Piece]:
    pieces = []
    for turn, (mark, content) in enumerate(zip(marks, contents, strict=True)):
        before, found, rendered = rendered.partition(mark)
        if not found:
            raise _MessageMissing(f"the chat template leaves out message {turn}")
        pieces += [Piece(before, None), Piece(content, turn)]
    return [*pieces, Piece(rendered, None)]


def encode_template(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a part of the template: its special tokens are special."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def encode_content(tokenizer: Any, text: str) -> list[int]:
    """Token ids of what stands inside a message: nothing in it is special."""
    ids: list[int] = []
    for stretch in _without_added_tokens(tokenizer, text):
        ids += tokenizer(stretch, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def content_spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """For each token of ``encode_content``, where it begins and ends in the text."""
    spans: list[tuple[int, int]] = []
    start = 0
    for stretch in _without_added_tokens(tokenizer, text):
        encoded = tokenizer(stretch, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        spans += [(start + first, start + last) for first, last in encoded["offset_mapping"]]
        start += len(stretch)
    return spans


def _without_added_tokens(tokenizer: Any, text: str) -> list[str]:
    """The text in stretches of which none holds an added token whole.

    ``split_special_tokens`` covers those that are marked special; some models register role tokens that are not.
    """
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if not token.special and len(str(token).strip()) > 1]
    present = [token for token in added if token in text]
    if not present:
        return [text] if text else []
    cut = re.sub(
        "|".join(re.escape(token) for token in sorted(present, key=len, reverse=True)), lambda found: f"{found[0][0]}\0{found[0][1:]}", text
    )
    return [stretch for stretch in cut.split("\0") if stretch]


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
    alternatives: int = 0  # how many candidates for the first token are wanted with their probabilities, and that of the reply

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
    alternatives: int = 0

    def token_ids(self, tokenizer: Any) -> list[int]:
        """The prompt as the model reads it; nothing in it is special."""
        return encode_content(tokenizer, self.text)


Prompt = ChatPrompt | PlainPrompt
