"""Which questions about which texts make up a chat (paper 3.5), and the chat as it is written and read."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from aloftrag import seeds
from aloftrag.job import Job
from aloftrag.prompts import rag
from aloftrag.prompts.chat import Message
from aloftrag.training.rows import TrainingRow, training_row

_OFTEN_ENOUGH = 2


@dataclass(frozen=True)
class Turn:
    """One question of a chat."""

    question_id: str
    text_id: str
    question: str
    answer: str
    also_positive: frozenset[str] = frozenset()  # texts that answer it too
    doubtful: frozenset[str] = frozenset()  # texts that may answer it too

    def fits(self, context_ids: Iterable[str]) -> bool:
        """Whether it is known for each context if it answers the question."""
        return self.doubtful.isdisjoint(context_ids)

    @property
    def has_one_answer(self) -> bool:
        """Whether nothing but its own text is known to answer it, or may."""
        return not self.also_positive and not self.doubtful


@dataclass(frozen=True)
class ChatPlan:
    """A chat before its texts are fetched."""

    chat_id: str  # the id of the question whose contexts these are
    split: str
    context_ids: list[str]
    turns: list[Turn]
    nearest_first: tuple[str, ...]  # the contexts but for the anchor's own text, the most similar to its question first

    def without(self, context: str) -> "ChatPlan":
        """The chat without one of its contexts, and without the questions about it."""
        return replace(
            self,
            context_ids=[other for other in self.context_ids if other != context],
            turns=[turn for turn in self.turns if turn.text_id != context],
            nearest_first=tuple(other for other in self.nearest_first if other != context),
        )


def plan_chats(kept: pl.DataFrame, job: Job) -> Iterator[ChatPlan]:
    """Chats over the kept questions (columns question_id, text_id, question, answer, negative_ids, also_positive, doubtful, split).

    The questions of a text are spread over its chats, so that of the turns of a chat each context gets about the same
    share; the anchor's own group is asked, the rest is filled with questions of the other contexts of the same split. A chat
    whose own questions have all been asked ``_OFTEN_ENOUGH`` times by then is left out: it would teach little that is new.
    """
    for (split,), part in kept.sort("question_id").partition_by("split", as_dict=True).items():
        by_text: dict[str, list[Turn]] = {}
        negative_ids: dict[str, list[str]] = {}
        for row in part.iter_rows(named=True):
            turn = Turn(
                row["question_id"],
                row["text_id"],
                row["question"],
                row["answer"],
                frozenset(row["also_positive"]),
                frozenset(row["doubtful"]) - {row["text_id"]},  # as a copy of its copy
            )
            by_text.setdefault(row["text_id"], []).append(turn)
            negative_ids[row["question_id"]] = row["negative_ids"]
        times_asked: Counter[str] = Counter()
        for turns in by_text.values():
            while turns:
                plan = _plan(turns, negative_ids[turns[0].question_id], by_text, str(split), job)
                own = [turn for turn in plan.turns if turn.text_id == turns[0].text_id]
                turns = [turn for turn in turns if turn not in own]
                if all(times_asked[turn.question_id] >= _OFTEN_ENOUGH for turn in own):
                    continue
                times_asked.update(turn.question_id for turn in plan.turns)
                yield plan


def _plan(turns: list[Turn], negative_ids: list[str], by_text: Mapping[str, list[Turn]], split: str, job: Job) -> ChatPlan:
    """The chat of the first of some questions about a text, with as many of the others as is their share."""
    anchor, per_chat = turns[0], job.training.questions_per_chat
    contexts = context_count(anchor.question_id, job)
    if is_withheld(anchor, negative_ids, contexts, job):
        own, nearest = [anchor], negative_ids[:contexts]
        context_ids = list(nearest)
    else:
        nearest = negative_ids[: contexts - 1]
        context_ids = [anchor.text_id, *nearest]
        fitting = [turn for turn in turns[1:] if turn.fits(context_ids)]  # the anchor's own negatives fit it
        own = [anchor, *fitting][: math.ceil(per_chat / contexts)]
    random = seeds.generator(job.seed, "chat", anchor.question_id)
    others = [turn for context in nearest for turn in by_text.get(context, []) if turn.fits(context_ids)]
    asked = own + random.sample(others, min(len(others), per_chat - len(own)))
    random.shuffle(asked)
    random.shuffle(context_ids)
    return ChatPlan(anchor.question_id, split, context_ids, asked, tuple(nearest))


def context_count(question_id: str, job: Job) -> int:
    """How many texts stand in the chat of a question: n, or drawn from the range that ``negatives.contexts`` gives."""
    fewest, most = job.context_range
    return fewest + int(seeds.draw(job.seed, "contexts of a chat", question_id) * (most - fewest + 1))


def is_withheld(anchor: Turn, negative_ids: list[str], contexts: int, job: Job) -> bool:
    """Whether the chat of a question lacks its text (``training.unanswerable``).

    Only where no other text is known to answer it, or may, and there is a further negative in its text's place.
    """
    drawn = seeds.draw(job.seed, "unanswerable", anchor.question_id) < job.training.unanswerable
    return drawn and anchor.has_one_answer and len(negative_ids) >= contexts


def write_messages(plan: ChatPlan, texts: Mapping[str, str], language: str, statement: str | None) -> list[Message]:
    """The conversation; ``language`` is an English name.

    ``statement`` is what is said where no context answers a question; None: each has its text among them.
    """
    messages = rag.first_turns(
        [texts[context] for context in plan.context_ids], plan.turns[0].question, language, may_be_absent=statement is not None
    )
    for number, turn in enumerate(plan.turns):
        if number:
            messages.append(rag.next_turn(turn.question))
        right = [place for place, context in enumerate(plan.context_ids, 1) if context == turn.text_id or context in turn.also_positive]
        answer = turn.answer if right else statement
        assert answer is not None, f"no text answers {turn.question_id}"
        messages.append(rag.reply_turn(right, answer))
    return messages


def chat_row(
    plan: ChatPlan, texts: Mapping[str, str], language: str, statement: str | None, tokenizer: Any, longest: int
) -> dict[str, Any] | None:
    """A row of ``schemas.CHATS`` of at most ``longest`` tokens; None where the anchor's own question and text alone are longer.

    Contexts that do not fit are left out, the least similar first, with the questions about them; then further questions about the
    anchor's own text, the last first.
    """
    while True:
        messages = write_messages(plan, texts, language, statement)
        row = training_row(tokenizer, plan.chat_id, messages)
        if len(row) <= longest:
            return _row(plan, messages, row)
        if len(plan.context_ids) > 1:
            plan = plan.without(plan.nearest_first[-1])
        elif len(plan.turns) > 1:
            further = [turn for turn in plan.turns if turn.question_id != plan.chat_id]
            plan = replace(plan, turns=[turn for turn in plan.turns if turn is not further[-1]])
        else:
            return None


def _row(plan: ChatPlan, messages: list[Message], row: TrainingRow) -> dict[str, Any]:
    places = {context: place for place, context in enumerate(plan.context_ids, 1)}
    return {
        "chat_id": plan.chat_id,
        "split": plan.split,
        "question_ids": [turn.question_id for turn in plan.turns],
        "text_ids": [turn.text_id for turn in plan.turns],
        "context_ids": plan.context_ids,
        "messages": messages,
        "positive_positions": [places.get(turn.text_id) for turn in plan.turns],
        "token_ids": row.token_ids,
        "targets": row.targets,
    }
