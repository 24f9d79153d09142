"""Step 6a (paper 4.3): base and adapter answer the same questions about the same contexts.

    texts, index, adapter, gold or held-out questions -> questions (with their contexts), answers/base, answers/adapter

The contexts are the n texts most similar to the question; when the positive is not among them it replaces the least similar
one and the question is hard (``evaluation.retrieval: as-is`` leaves it missing); shuffled by (seed, question id). Each pass is
saved as it ends.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from aloftrag import artifacts, languages, models, schemas, seeds
from aloftrag.artifacts import Run
from aloftrag.corpus import text_id
from aloftrag.engine import Completion, Engine, PromptRefused, StartEngine, pool, starter
from aloftrag.errors import RunError
from aloftrag.evaluation import questions as evaluation_questions
from aloftrag.evaluation.baselines import most_words_position
from aloftrag.evaluation.questions import Questions
from aloftrag.job import Job
from aloftrag.prompts import rag
from aloftrag.prompts.chat import ChatPrompt, encode_content
from aloftrag.retrieval import near_duplicates, shards
from aloftrag.retrieval.index import Index
from aloftrag.retrieval.text_store import TextStore
from aloftrag.retrieval.vectors import embed, vectors_of
from aloftrag.training import base_model

MAKES = "answers"
BESIDE: tuple[str, ...] = ("questions",)
NEEDS: tuple[str, ...] = ("texts", "annotations", "negatives", "chats", "adapter")
VERSION = 4

FORMAT_KEPT = 0.9  # constrained: auto leaves replies free when the base keeps the form in this share of the questions
# How far the log-probabilities of equal replies of one model may be apart: float32; bfloat16 (not yet measured on a GPU).
_ROUNDING_CPU, _ROUNDING_GPU = 1e-4, 0.05
_TURNED = 0.01  # the share of a model's own replies that rounding may turn
_BEGINNING_TOKENS = 16  # enough to see whether a reply begins in the asked form
_ASKED = pa.schema(
    [
        *(schemas.QUESTIONS.field(name) for name in ("question_id", "text_id", "question", "gold_answers")),
        schemas.NEGATIVES.field("also_positive"),
    ]
)
_REPLIES = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("free", pa.string()),  # null: not asked, or cut at the token limit
        pa.field("constrained", pa.string()),
        pa.field("free_logprob", pa.float64()),
        pa.field("constrained_logprob", pa.float64()),
    ]
)

Row = dict[str, Any]


def settings(run: Run) -> dict[str, Any]:
    """Everything that can change the answers, beside texts, index and adapter."""
    evaluation = run.job.evaluation
    gold = artifacts.files_digest([Path(file) for file in evaluation_questions.gold_files(run.job)]) if evaluation.gold else None
    return {
        "evaluation.gold": gold,
        "evaluation.max_questions": evaluation.max_questions,
        "evaluation.constrained": evaluation.constrained,
        "evaluation.retrieval": evaluation.retrieval,
        "corpus.chunk_tokens": run.job.corpus.chunk_tokens if gold else None,
        "training.max_tokens": run.job.training.max_tokens,
        "engine.options": run.job.engine.options,
        "seed": run.job.seed,
    }


def make(run: Run, folder: Path, work: Path) -> dict[str, Any]:
    """Write the ``answers`` artifact and beside it ``questions``; returns its counts."""
    base_model.hold_adapter(run.artifact("adapter"), run.job)
    questions = run.artifact("questions")
    counts = _prepare_questions(run, questions, work)
    constrained = run.job.evaluation.constrained
    base = _ask(run, questions, work, "base", starter(run), free=True, constrained=constrained is not False)
    free_form = _form_kept(base, questions, run.job)
    is_constrained = free_form < FORMAT_KEPT if constrained == "auto" else constrained
    adapter = _ask(run, questions, work, "adapter", _adapter_starter(run, work), free=not is_constrained, constrained=is_constrained)
    scored = "constrained" if is_constrained else "free"
    _hold_applied(base, adapter, scored, _ROUNDING_GPU if pool.gpus() else _ROUNDING_CPU)
    for variant, replies in (("base", base), ("adapter", adapter)):
        table = answers_table(
            artifacts.read_table(questions, schemas.QUESTIONS), replies, variant, is_constrained, may_be_absent=run.job.may_be_absent
        )
        artifacts.write_table(table, artifacts.fresh_folder(folder / variant) / "answers.parquet")
    unanswered = base[scored].null_count + adapter[scored].null_count
    return {**counts, "unanswered": unanswered, "constrained": is_constrained, "base_format_ok_free": free_form}


def _hold_applied(base: pa.Table, adapter: pa.Table, scored: str, rounding: float) -> None:
    """Raises ``RunError`` when the adapter answers as the base does, word for word and in the probabilities, but for rounding."""
    of_base = {row["question_id"]: row for row in base.to_pylist()}
    pairs = [(of_base[row["question_id"]], row) for row in adapter.to_pylist()]
    replied = [(one, other) for one, other in pairs if one[scored] is not None or other[scored] is not None]
    same = sum(_is_same(one, other, scored, rounding) for one, other in replied)
    if replied and len(replied) - same <= _TURNED * len(replied):
        raise RunError(
            f"answer_questions: the adapter was not applied: {same} of {len(replied)} replies are the base model's, with the same "
            "probabilities; a comparison would say nothing (adapter/metrics.jsonl shows whether it learned anything)"
        )


def _is_same(one: Row, other: Row, scored: str, rounding: float) -> bool:
    key = f"{scored}_logprob"
    return one[scored] == other[scored] and (one[key] is None or other[key] is None or abs(one[key] - other[key]) <= rounding)


def choose_contexts(ids: Sequence[str], positive: str, lengths: dict[str, int], limit: int, *, as_is: bool = False) -> list[str]:
    """The contexts of a question, most similar first.

    ``ids`` are the n most similar texts; as many are taken as fit ``limit`` tokens. A positive that is not among them replaces
    the least similar, and more of these if it is longer; ``as_is``: it stays missing.
    """
    taken: list[str] = []
    for context in ids:
        if sum(lengths[taken_id] for taken_id in taken) + lengths[context] > limit:
            break
        taken.append(context)
    if as_is:
        return taken or list(ids[:1])  # one that does not fit alone: asked, and refused for its length
    if positive in taken:
        return taken
    others = taken[:-1]
    while others and sum(lengths[other] for other in others) + lengths[positive] > limit:
        others.pop()
    return [*others, positive]


def answers_table(questions: pa.Table, replies: pa.Table, variant: str, constrained: bool, *, may_be_absent: bool = False) -> pa.Table:
    """``schemas.ANSWERS``: what each reply cites and answers; one that does not keep the form has neither."""
    by_question = {row["question_id"]: row for row in replies.to_pylist()}
    rows = []
    for question in questions.to_pylist():
        reply = by_question[question["question_id"]]
        completion = reply["constrained"] if constrained else reply["free"]
        read = rag.read(completion or "", len(question["context_ids"]), may_be_absent=may_be_absent)
        rows.append(
            {
                **{name: question[name] for name in schemas.ANSWERS.names if name in question},
                "variant": variant,
                "completion": completion,
                "completion_free": reply["free"] if variant == "base" else None,
                "cited_positions": read.cited_positions if read else None,
                "answer": read.answer if read else None,
            }
        )
    return pa.Table.from_pylist(rows, schema=schemas.ANSWERS)


async def answer(engine: Engine, row: Row, *, free: bool, constrained: bool, max_tokens: int, may_be_absent: bool = False) -> Row:
    """Replies to one question, free and in the asked form; a row of ``_REPLIES``."""
    reply: Row = {"question_id": row["question_id"]}
    try:
        if free:
            reply |= _reply("free", await _free_reply(engine, row, max_tokens, only_form=constrained))
        if constrained:
            form = rag.form(len(row["context_ids"]), may_be_absent=may_be_absent)
            reply |= _reply("constrained", await engine.complete(ChatPrompt(row["messages"], max_tokens, form=form, alternatives=1)))
    except PromptRefused:  # such as where the positive alone is too long: unanswered, and so counted as wrong
        pass
    return reply


def _set_aside(row: Row, reason: str) -> Row:
    """A question that the engine died on has no reply, counts as wrong, and is in the counts as unanswered."""
    return {"question_id": row["question_id"]}


async def _free_reply(engine: Engine, row: Row, max_tokens: int, only_form: bool) -> Completion:
    """A reply that nothing constrains; where ``only_form`` is asked, one that begins out of form is not written to its end."""
    if only_form:
        beginning = await engine.complete(ChatPrompt(row["messages"], _BEGINNING_TOKENS))
        if not rag.may_keep_form(beginning.text):
            return Completion(beginning.text, ended=True)
    return await engine.complete(ChatPrompt(row["messages"], max_tokens, alternatives=1))


def _reply(kind: str, completion: Completion) -> Row:
    return {kind: completion.text, f"{kind}_logprob": completion.logprob} if completion.ended else {}


class _Contexts:
    """Finds the contexts of blocks of questions, and writes the conversations."""

    def __init__(self, job: Job, index: Index, texts: Path, added_texts: Path, clusters_of: Callable[[Iterable[str]], Mapping[str, str]]):
        from transformers import AutoTokenizer

        self._job = job
        self._index = index
        self._store = TextStore(texts, added_texts)
        self._clusters_of = clusters_of
        self._tokenizer = AutoTokenizer.from_pretrained(models.local_folder(job.models.llm, "llm"))
        self._longest = models.longest_prompt(job.models.llm, job.training.max_tokens)

    def __call__(self, block: pa.Table) -> pa.Table:
        queries, rows = vectors_of(block), block.drop_columns("vector").to_pylist()
        own_ids = block["text_id"].to_pylist()
        as_is = self._job.evaluation.retrieval == "as-is"
        # Where a text is put in, its near-duplicates stay out; as it is, a copy may be found in its place.
        kept = [None] * len(own_ids) if as_is else own_ids
        nearest = near_duplicates.nearest_distinct(self._index, queries, self._job.contexts, kept, self._clusters_of)
        cluster = self._clusters_of({*own_ids}.union(*nearest))
        own_similarities = self._index.similarity(queries, own_ids)
        texts = self._store.texts({*own_ids}.union(*nearest))
        language = languages.english_name(self._job.language)
        lengths = {text: self._length(content) for text, content in texts.items()}
        prepared = []
        for row, found, own in zip(rows, nearest, own_similarities.tolist(), strict=True):
            overhead = (
                self._length(
                    "".join(
                        turn["content"] for turn in rag.first_turns([], row["question"], language, may_be_absent=self._job.may_be_absent)
                    )
                )
                + 64
            )
            limit = self._longest - rag.reply_tokens(self._longest) - overhead
            positive = row["text_id"]
            own_cluster = cluster.get(positive, positive)
            positive = next((text for text in found if cluster.get(text, text) == own_cluster), positive)
            contexts = choose_contexts(list(found), positive, lengths, limit, as_is=as_is)
            most_similar = next(iter(found))
            by_id = {row["text_id"]: own, **found}
            seeds.generator(self._job.seed, "contexts", row["question_id"]).shuffle(contexts)
            shown = [texts[context] for context in contexts]
            also_positive = set(row.pop("also_positive"))
            prepared.append(
                {
                    **row,
                    "context_ids": contexts,
                    "similarities": [by_id[context] for context in contexts],
                    "positive_position": contexts.index(positive) + 1 if positive in contexts else None,
                    "also_positive_positions": [place for place, context in enumerate(contexts, 1) if context in also_positive],
                    "most_similar_position": contexts.index(most_similar) + 1 if most_similar in contexts else 0,
                    "most_words_position": most_words_position(row["question"], shown, self._job.language),
                    "is_hard": positive not in found,
                    "messages": rag.first_turns(shown, row["question"], language, may_be_absent=self._job.may_be_absent),
                }
            )
        return pa.Table.from_pylist(prepared, schema=schemas.QUESTIONS)

    def _length(self, text: str) -> int:
        return len(encode_content(self._tokenizer, text)) + 8  # and its heading


def _prepare_questions(run: Run, destination: Path, work: Path) -> dict[str, Any]:
    """Write the questions with their contexts to ``destination``."""
    from ray.data import ActorPoolStrategy

    job = run.job
    if job.evaluation.gold:
        tokenizer = str(models.local_folder(job.models.llm, "llm")) if job.corpus.chunk_tokens else None
        found = evaluation_questions.gold_questions(job, tokenizer)
    else:
        found = evaluation_questions.held_out_questions(*(run.artifact(name) for name in ("annotations", "negatives", "selection")))
    if not found.rows.height:
        raise RunError("evaluation: there is no question to ask; give evaluation.gold, or a larger evaluation.held_out")
    rows = evaluation_questions.draw(found.rows, job.evaluation.max_questions, job.seed)
    added_texts, added = _add_texts(run, found, rows, work / "added_texts")
    indexes = [run.artifact("index")]
    if added:
        indexes.append(work / "added_index")
        embed(job, added_texts, "text", indexes[1], work / "added-checkpoints", columns=["text_id", "text"])
        shards.add(indexes[1], "exact")
    asked = artifacts.fresh_folder(work / "asked")
    artifacts.write_table(rows.select(_ASKED.names).to_arrow().cast(_ASKED), asked / "asked.parquet")
    vectors = work / "question_vectors"
    embed(job, asked, "query", vectors, work / "question_vectors-checkpoints")
    with shards.alive(*indexes) as ask_shards:
        index = Index(ask_shards, shards.nprobe_of(indexes[0]))
        texts = TextStore(run.artifact("texts"), added_texts).texts
        clusters_of = near_duplicates.clusters_with(job, run.artifact("clusters"), index, work / "added_index", texts)
        artifacts.map_rows(
            source=vectors,
            id_column="question_id",
            transform=lambda blocks: blocks.map_batches(
                _Contexts,
                fn_constructor_args=(job, index, run.artifact("texts"), added_texts, clusters_of),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=1,
                compute=ActorPoolStrategy(size=1),
            ),
            destination=destination,
            schema=schemas.QUESTIONS,
            checkpoints=work / "questions-checkpoints",
        )
    return {
        "questions": rows.height,
        "questions_from": "gold" if job.evaluation.gold else "held_out",
        "texts_added": added,
        **found.counts,
    }


def _add_texts(run: Run, found: Questions, rows: pl.DataFrame, folder: Path) -> tuple[Path, int]:
    """Write the positives of the drawn questions that are not in the corpus; they are for the evaluation only."""
    artifacts.fresh_folder(folder)
    wanted = {text: found.texts[text] for text in rows["text_id"].unique().to_list() if text in found.texts}
    known = TextStore(run.artifact("texts")).known(wanted)
    added = [
        {"text_id": text_id(text), "text": text, "source": "evaluation.gold", "copies": 1}
        for key, text in sorted(wanted.items())
        if key not in known
    ]
    if added:
        artifacts.write_table(pa.Table.from_pylist(added, schema=schemas.TEXTS), folder / "added.parquet")
    return folder, len(added)


def _ask(run: Run, questions: Path, work: Path, variant: str, start_engine: StartEngine, *, free: bool, constrained: bool) -> pa.Table:
    """One pass over the questions with one variant, resumable at the row: a table of ``_REPLIES``."""
    longest = models.longest_prompt(run.job.models.llm, run.job.training.max_tokens)
    ask = functools.partial(
        answer, free=free, constrained=constrained, max_tokens=rag.reply_tokens(longest), may_be_absent=run.job.may_be_absent
    )
    question = pool.Question(ask, _set_aside, "question_id", _REPLIES)
    replies, in_flight = work / f"replies-{variant}", artifacts.fresh_folder(work / f"replies-{variant}-in-flight")
    with pool.explained(in_flight):
        artifacts.map_rows(
            source=questions,
            id_column="question_id",
            columns=["question_id", "messages", "context_ids"],
            transform=lambda rows: pool.ask_rows(rows, question, start_engine, run.job, in_flight),
            destination=replies,
            schema=_REPLIES,
            checkpoints=work / f"replies-{variant}-checkpoints",
        )
    return artifacts.read_table(replies, _REPLIES)


def _adapter_starter(run: Run, work: Path) -> StartEngine:
    """An engine with the adapter: as a LoRA request on a GPU; merged into a copy on a CPU, where that is five times faster."""
    import ray

    adapter = run.artifact("adapter")
    if pool.gpus():
        return starter(run, adapter=adapter)
    from aloftrag.training.merge import merge_adapter

    merged = work / "merged"
    ray.get(ray.remote(num_cpus=1)(merge_adapter).remote(run.job.models.llm, adapter, merged))
    return starter(run, model=str(merged))


def _form_kept(replies: pa.Table, questions: Path, job: Job) -> float:
    """The share of free replies that keep the asked form."""
    contexts = {
        row["question_id"]: len(row["context_ids"])
        for row in artifacts.read_table(questions, schemas.QUESTIONS, ["question_id", "context_ids"]).to_pylist()
    }
    kept = [
        rag.read(row["free"] or "", contexts[row["question_id"]], may_be_absent=job.may_be_absent) is not None
        for row in replies.to_pylist()
    ]
    return sum(kept) / len(kept)
