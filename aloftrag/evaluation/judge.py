"""A language model as the judge of answers, and how far it agrees with people (paper 4.3: answer accuracy)."""

import asyncio
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from aloftrag import artifacts, models, storage
from aloftrag.artifacts import Run
from aloftrag.engine import Engine, PromptRefused, StartEngine, VllmEngine, VllmSettings, pool, starter
from aloftrag.engine.server import StartChatServerEngine
from aloftrag.errors import RunError, UsageError
from aloftrag.evaluation.questions import read_gold
from aloftrag.prompts import judge as judge_prompt

Row = dict[str, Any]
CHECK_COLUMNS = ("context", "question", "answer", "reply", "is_correct")

_REQUESTS = 64  # at once, to a server
_MOST_UNUSABLE = 0.1  # of the verdicts, above which they say nothing
_KEY = "evaluation.judge"
_CHECK_MAX_TOKENS = 20000
_ASKED = pa.schema(
    [
        pa.field("answer_id", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("question", pa.string(), nullable=False),
        pa.field("gold_answers", pa.list_(pa.string()), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
    ]
)
_VERDICTS = pa.schema([pa.field("answer_id", pa.string(), nullable=False), pa.field("is_right", pa.bool_())])


def find(judge: str) -> None:
    """Fetch a judge, or raise ``UsageError`` where there is none."""
    if models.is_server(judge):
        models.served_model(judge, _KEY)
    else:
        models.local_folder(judge, "judge")


def identity(judge: str) -> str:
    """What can change a judge's verdicts: its weights, or its name on a server."""
    return models.served_model(judge, _KEY).name if models.is_server(judge) else models.identity(judge, "judge")


def starter_of(run: Run) -> StartEngine:
    """What starts the judge of a run."""
    judge = run.job.evaluation.judge
    assert judge is not None
    if models.is_server(judge):
        return StartChatServerEngine(judge, _KEY, run.job.engine.max_num_seqs or _REQUESTS)
    return starter(run, model=judge)


def judged(rows: Sequence[Row], run: Run, work: Path, start_engine: StartEngine) -> dict[str, bool | None]:
    """Whether each answer is right, by ``answer_id``; None where the judge does not say. Rows are of ``_ASKED``; resumable at the row.

    Raises ``RunError`` when the judge does not say in more than one of ten.
    """
    if not rows:
        return {}
    asked = work / "to_judge"
    artifacts.write_table(pa.Table.from_pylist(list(rows), schema=_ASKED), artifacts.fresh_folder(asked) / "answers.parquet")
    verdicts = work / "verdicts"
    pool.ask_rows(asked, pool.Question(judge_row, _no_verdict, "answer_id", _VERDICTS), start_engine, run, verdicts)
    found = dict(storage.scan(verdicts).collect().select("answer_id", "is_right").iter_rows())
    _hold_usable(list(found.values()), _KEY)
    return found


async def judge_row(engine: Engine, row: Row) -> Row:
    """The verdict on one answer: a row of ``_VERDICTS``."""
    return {
        "answer_id": row["answer_id"],
        "is_right": await verdict(engine, judge_prompt.prompt(row["text"], row["question"], row["gold_answers"], row["answer"])),
    }


async def verdict(engine: Engine, prompt: Any) -> bool | None:
    """The judge's yes or no; None when it says neither, or does not take the prompt."""
    try:
        completion = await engine.complete(prompt)
    except PromptRefused:
        return None
    return judge_prompt.read(completion.text)


def _no_verdict(row: Row, reason: str) -> Row:
    return {"answer_id": row["answer_id"]}


def _hold_usable(verdicts: Sequence[bool | None], key: str) -> None:
    unusable = sum(verdict is None for verdict in verdicts)
    if unusable > _MOST_UNUSABLE * len(verdicts):
        raise RunError(
            f"{key}: the judge said neither yes nor no to {unusable} of {len(verdicts)} answers, or refused them; "
            "take a model that follows instructions"
        )


def read_labels(file: str) -> list[Row]:
    """The rows of a table of human verdicts; raises ``UsageError`` naming what is wrong."""
    rows = read_gold(file, "judge-check")
    if not rows:
        raise UsageError(f"judge-check: {file}: no rows")
    for number, row in enumerate(rows, 1):
        row["reply"] = "" if row.get("reply") is None else row["reply"]  # a question that was left unanswered
        if missing := [name for name in CHECK_COLUMNS if row.get(name) is None]:
            raise UsageError(f"judge-check: {file}, row {number}: no {missing[0]}; expected the columns {', '.join(CHECK_COLUMNS)}")
        row["is_correct"] = _label(row["is_correct"], f"judge-check: {file}, row {number}")
    return rows


def _label(value: Any, place: str) -> bool:
    known = {**dict.fromkeys(("true", "1", "1.0", "yes"), True), **dict.fromkeys(("false", "0", "0.0", "no"), False)}
    if (label := known.get(str(value).strip().lower())) is None:
        raise UsageError(f"{place}: is_correct is {value!r}; expected true or false")
    return label


def check(rows: Sequence[Row], judge: str) -> dict[str, Any]:
    """How far a judge agrees with the ``is_correct`` of rows (``read_labels``): see ``agreement``."""
    prompts = [judge_prompt.prompt(str(row["context"]), str(row["question"]), [str(row["answer"])], str(row["reply"])) for row in rows]
    if models.is_server(judge):
        start: StartEngine = StartChatServerEngine(judge, "judge-check", _REQUESTS)
    else:
        start = functools.partial(VllmEngine, VllmSettings(judge, _CHECK_MAX_TOKENS))

    async def ask() -> list[bool | None]:
        engine = start()
        try:
            return await asyncio.gather(*(verdict(engine, prompt) for prompt in prompts))
        finally:
            engine.close()

    verdicts = asyncio.run(ask())
    _hold_usable(verdicts, f"judge-check: {judge}")
    return agreement([row["is_correct"] for row in rows], verdicts)


def agreement(labels: Sequence[bool], verdicts: Sequence[bool | None]) -> dict[str, Any]:
    """Share of verdicts that are the human's, Cohen's kappa (agreement beyond chance), and counts; without unusable verdicts.

    Kappa is 1 for full agreement, 0 for as much as chance gives, None where people or judge know only one verdict.
    """
    from sklearn.metrics import cohen_kappa_score

    pairs = [(label, verdict) for label, verdict in zip(labels, verdicts, strict=True) if verdict is not None]
    known = len({label for label, _ in pairs}) > 1 and len({verdict for _, verdict in pairs}) > 1
    return {
        "answers": len(labels),
        "unusable": len(labels) - len(pairs),
        "agreement": sum(label == verdict for label, verdict in pairs) / len(pairs),
        "kappa": float(cohen_kappa_score(*zip(*pairs, strict=True))) if known else None,
        "judge_too_lenient": sum(verdict and not label for label, verdict in pairs),
        "judge_too_strict": sum(label and not verdict for label, verdict in pairs),
    }
