"""From chats to token ids and labels (paper appendix C): loss on the replies only.

The prompt's token ids are those that the engine is asked with (``prompts.chat``), so the model is trained as it is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aloftrag.prompts import rag
from aloftrag.prompts.chat import Message, content_spans, encode_content, encode_template, render

# What a token is a target of.
NONE, CITATION, ANSWER = 0, 1, 2


@dataclass(frozen=True)
class TrainingRow:
    """One chat as the model reads it."""

    chat_id: str
    token_ids: Sequence[int] | np.ndarray
    targets: Sequence[int] | np.ndarray  # per token: NONE (not learned), CITATION (the numbers), ANSWER (the rest of the reply and its end)

    def __len__(self) -> int:
        return len(self.token_ids)


def training_row(tokenizer: Any, chat_id: str, messages: Sequence[Message]) -> TrainingRow:
    """Token ids and targets of a chat: every assistant turn is learned, its end-of-turn token included."""
    token_ids: list[int] = []
    targets: list[int] = []

    def add(ids: list[int], target: int) -> None:
        token_ids.extend(ids)
        targets.extend([target] * len(ids))

    def is_reply(turn: int | None) -> bool:
        return turn is not None and messages[turn]["role"] == "assistant"

    pieces = render(tokenizer, messages, ask=False)
    for number, piece in enumerate(pieces):
        if is_reply(piece.turn):
            token_ids.extend(encode_content(tokenizer, piece.text))
            targets.extend(_reply_targets(tokenizer, piece.text))
        elif piece.turn is not None:
            add(encode_content(tokenizer, piece.text), NONE)
        else:
            text = piece.text
            if number and is_reply(pieces[number - 1].turn):  # the model must learn to stop
                end, text = _end_of_turn(tokenizer, text)
                add(end, ANSWER)
            following = pieces[number + 1].turn if number + 1 < len(pieces) else None
            if following is not None and is_reply(following):
                # What a template puts between the question's end and the reply when it shows a finished reply (Mistral: a space)
                # has to be written by the model when it is asked, so it is learned.
                asked = render(tokenizer, messages[:following], ask=True)[-1].text
                extra = piece.text.removeprefix(asked) if piece.text.startswith(asked) else ""
                add(encode_template(tokenizer, text[: len(text) - len(extra)]), NONE)
                add(encode_template(tokenizer, extra), ANSWER)
            else:
                add(encode_template(tokenizer, text), NONE)
    return TrainingRow(chat_id, token_ids, targets)


def _reply_targets(tokenizer: Any, reply: str) -> list[int]:
    """CITATION for the tokens that hold a cited number, ANSWER for the others."""
    heading, cited, _ = rag.reply_parts(reply)
    first, last = len(heading), len(heading) + len(cited)
    return [CITATION if start < last and end > first else ANSWER for start, end in content_spans(tokenizer, reply)]


def _end_of_turn(tokenizer: Any, text: str) -> tuple[list[int], str]:
    """The token that ends a reply, and the rest of the template's text behind it."""
    ids = encode_template(tokenizer, text)
    assert ids, "the chat template ends a reply with nothing"
    end = tokenizer.decode(ids[:1], skip_special_tokens=False)
    assert text.startswith(end), f"the chat template ends a reply with {text!r}, not with a token of its own"
    return ids[:1], text.removeprefix(end)
