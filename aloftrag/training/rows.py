"""From chats to token ids and labels (paper appendix C): loss on the replies only.

The prompt's token ids are those that the engine is asked with (``prompts.chat``), so the model is trained as it is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aloftrag.prompts import rag
from aloftrag.prompts.chat import Message, encode_content, encode_template, render

# What a token is a target of.
NONE, CITATION, ANSWER = 0, 1, 2


@dataclass(frozen=True)
class TrainingRow:
    """One chat as the model reads it."""

    chat_id: str
    token_ids: list[int]
    targets: list[int]  # per token: NONE (not learned), CITATION (the numbers), ANSWER (the rest of the reply and its end)

    def __len__(self) -> int:
        return len(self.token_ids)


def training_row(tokenizer: Any, chat_id: str, messages: Sequence[Message]) -> TrainingRow:
    """Token ids and targets of a chat: every assistant turn is learned, its end-of-turn token included."""
    token_ids: list[int] = []
    targets: list[int] = []

    def add(ids: list[int], target: int) -> None:
        token_ids.extend(ids)
        targets.extend([target] * len(ids))

    after_reply = False
    for piece in render(tokenizer, messages, ask=False):
        if piece.turn is None:
            ids = encode_template(tokenizer, piece.text)
            if after_reply:  # the model must learn to stop
                assert ids, "the chat template ends a reply with nothing"
                add(ids[:1], ANSWER)
                ids = ids[1:]
            add(ids, NONE)
        elif messages[piece.turn]["role"] == "assistant":
            heading, cited, rest = rag.reply_parts(piece.text)
            add(encode_content(tokenizer, heading), ANSWER)
            add(encode_content(tokenizer, cited), CITATION)
            add(encode_content(tokenizer, rest), ANSWER)
        else:
            add(encode_content(tokenizer, piece.text), NONE)
        after_reply = piece.turn is not None and messages[piece.turn]["role"] == "assistant"
    return TrainingRow(chat_id, token_ids, targets)
