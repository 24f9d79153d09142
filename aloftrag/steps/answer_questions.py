"""Step 6a (paper 4.3): base and adapter answer the same questions about the same contexts.

    texts, index, adapter, gold or held-out questions -> questions (with their contexts), answers/base, answers/adapter

Which contexts: ``evaluation/contexts.py``. Each pass is saved as it ends.
"""

import functools
from pathlib import Path
from typing import Any

import pyarrow as pa

from aloftrag import artifacts, cluster, models, schemas, storage
from aloftrag.artifacts import Run
from aloftrag.engine import Completion, Engine, PromptRefused, StartEngine, pool, starter
from aloftrag.evaluation import contexts
from aloftrag.evaluation import questions as evaluation_questions
from aloftrag.job import Job
from aloftrag.prompts import rag
from aloftrag.prompts.chat import ChatPrompt
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
    gold = artifacts.files_digest([storage.at(file) for file in evaluation_questions.gold_files(run.job)]) if evaluation.gold else None
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
    counts = contexts.prepare_questions(run, questions, work)
    constrained = run.job.evaluation.constrained
    base = _ask(run, questions, work, "base", starter(run), free=True, constrained=constrained is not False)
    free_form = _form_kept(base, questions, run.job)
    is_constrained = free_form < FORMAT_KEPT if constrained == "auto" else constrained
    adapter = _ask(run, questions, work, "adapter", _adapter_starter(run, work), free=not is_constrained, constrained=is_constrained)
    scored = "constrained" if is_constrained else "free"
    not_applied = why_not_applied(
        base, adapter, scored, _ROUNDING_GPU if cluster.gpus() else _ROUNDING_CPU, base_model.is_trained(run.artifact("adapter"))
    )
    columns = [name for name in schemas.QUESTIONS.names if name in schemas.ANSWERS.names]  # not the prompts, with all their texts
    asked = artifacts.read_table(questions, schemas.QUESTIONS, columns)
    for variant, replies in (("base", base), ("adapter", adapter)):
        table = answers_table(asked, replies, variant, is_constrained, may_be_absent=run.job.may_be_absent)
        artifacts.write_table(table, artifacts.fresh_folder(folder / variant) / "answers.parquet")
    unanswered = base[scored].null_count + adapter[scored].null_count
    engines = pool.engine_use(*(_replies(work, variant) for variant in ("base", "adapter")))
    counts |= {"unanswered": unanswered, "constrained": is_constrained, "base_format_ok_free": free_form, "engines": engines}
    return counts if not_applied is None else {**counts, "not_applied": not_applied}


def why_not_applied(base: pa.Table, adapter: pa.Table, scored: str, rounding: float, is_trained: bool) -> str | None:
    """What shows that the adapter changed nothing, if so: it answers as the base does, word for word and in the probabilities.

    ``base`` and ``adapter``: tables of ``_REPLIES``; ``scored``: their column; ``rounding``: how far equal log-probabilities may lie apart.
    """
    if not is_trained:
        return "it was never trained, B is 0 in all its layers"
    of_base = {row["question_id"]: row for row in base.to_pylist()}
    pairs = [(of_base[row["question_id"]], row) for row in adapter.to_pylist()]
    replied = [(one, other) for one, other in pairs if one[scored] is not None or other[scored] is not None]
    same = sum(_is_same(one, other, scored, rounding) for one, other in replied)
    if not replied or len(replied) - same > _TURNED * len(replied):
        return None
    return f"{same} of {len(replied)} replies do not differ from those of the base model, nor do their probabilities"


def _is_same(one: Row, other: Row, scored: str, rounding: float) -> bool:
    key = f"{scored}_logprob"
    return one[scored] == other[scored] and (one[key] is None or other[key] is None or abs(one[key] - other[key]) <= rounding)


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


def _ask(run: Run, questions: Path, work: Path, variant: str, start_engine: StartEngine, *, free: bool, constrained: bool) -> pa.Table:
    """One pass over the questions with one variant, resumable at the row: a table of ``_REPLIES``."""
    longest = models.longest_prompt(run.job.models.llm, run.job.training.max_tokens)
    ask = functools.partial(
        answer, free=free, constrained=constrained, max_tokens=rag.reply_tokens(longest), may_be_absent=run.job.may_be_absent
    )
    question, replies = pool.Question(ask, _set_aside, "question_id", _REPLIES), _replies(work, variant)
    pool.ask_rows(questions, question, start_engine, run, replies, columns=["question_id", "messages", "context_ids"])
    return artifacts.read_table(replies, _REPLIES)


def _replies(work: Path, variant: str) -> Path:
    return work / f"replies-{variant}"


def _adapter_starter(run: Run, work: Path) -> StartEngine:
    """An engine with the adapter: as a LoRA request on a GPU; merged into a copy on a CPU, where that is five times faster."""
    adapter = run.artifact("adapter")
    if cluster.gpus():
        return starter(run, adapter=adapter)
    return functools.partial(_start_merged, run, adapter, work)


def _start_merged(run: Run, adapter: Path, work: Path) -> Engine:
    from aloftrag.training.merge import merge_adapter

    merged = storage.scratch(work / f"merged-{artifacts.id_of(adapter)}")
    merge_adapter(run.job.models.llm, adapter, merged)
    return starter(run, model=str(merged))()


def _form_kept(replies: pa.Table, questions: Path, job: Job) -> float:
    """The share of free replies that keep the asked form."""
    shown = {
        row["question_id"]: len(row["context_ids"])
        for row in artifacts.read_table(questions, schemas.QUESTIONS, ["question_id", "context_ids"]).to_pylist()
    }
    kept = [
        rag.read(row["free"] or "", shown[row["question_id"]], may_be_absent=job.may_be_absent) is not None for row in replies.to_pylist()
    ]
    return sum(kept) / len(kept)
