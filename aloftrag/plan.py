"""``aloftrag plan``: what a run would cost, from a sample of the corpus; runs nothing."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from aloftrag import models
from aloftrag.corpus import chunker, normalised, read_rows, text_id
from aloftrag.job import Job
from aloftrag.retrieval import ivf
from aloftrag.steps.load_texts import corpus_files

SAMPLE_TEXTS = 1000

# Assumed, not measured on your machines: tokens a second of one H100 with a 7B model in vLLM and in LoRA training, and of an embedder.
ASSUMED_PREFILL_RATE, ASSUMED_DECODE_RATE = 20_000, 2_500
ASSUMED_TRAINING_RATE, ASSUMED_EMBEDDING_RATE = 8_000, 50_000
ASSUMED_SEARCH_RATE = 2e13  # products added up a second, in float32
ASSUMED_LISTS_SHARE = 1 / 32  # of the texts that a search of inverted lists looks at
_INSTRUCTION_TOKENS, _QUESTION_TOKENS, _RATING_TOKENS = 150, 60, 4


@dataclass(frozen=True)
class StepPlan:
    """One step of the plan."""

    step: str
    rows: int
    tokens: int
    gpu_hours: float
    disk_mb: float


def plan(job: Job) -> list[StepPlan]:
    """Rows, tokens, hours and disk of each step for one language, from at most ``SAMPLE_TEXTS`` texts."""
    from transformers import AutoTokenizer

    folder = models.local_folder(job.models.llm, "llm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts, sampled_bytes, all_bytes = _sample(job, str(folder))
    tokens_each = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts) / max(1, len(texts))
    distinct = len({text_id(text) for text in texts}) / max(1, len(texts))
    rows = round(len(texts) * distinct * all_bytes / max(1, sampled_bytes))
    questions = rows * job.annotation.questions_per_text
    chats = -(-questions // job.training.questions_per_chat) if job.training.questions_per_chat > 1 else questions
    calls = 1 + job.annotation.questions_per_text * (3 if job.annotation.rate_qa else 1)
    read = round(rows * calls * (tokens_each + _INSTRUCTION_TOKENS))
    written = round(rows * _RATING_TOKENS + questions * _QUESTION_TOKENS)
    contexts = sum(job.context_range) / 2
    chat_tokens = round(chats * job.training.epochs * (contexts * tokens_each + job.training.questions_per_chat * _QUESTION_TOKENS))
    asked = job.evaluation.max_questions or round(questions * job.evaluation.held_out)
    answered = round(2 * asked * job.contexts * tokens_each)
    text_mb = rows * tokens_each * 4 / 1e6
    return [
        StepPlan("load_texts", rows, round(rows * tokens_each), 0.0, text_mb),
        StepPlan(
            "annotate",
            questions,
            read + written,
            _hours(read, ASSUMED_PREFILL_RATE) + _hours(written, ASSUMED_DECODE_RATE),
            questions * 5e-4,
        ),
        StepPlan(
            "mine_negatives",
            questions,
            round(rows * tokens_each),
            _hours(rows * tokens_each, ASSUMED_EMBEDDING_RATE)
            + search_hours(job, rows, _queries(job, rows, questions))[_index_kind(job, rows, questions)],
            rows * 2.1e-3 + questions * 1e-3,
        ),
        StepPlan("assemble_chats", chats, chat_tokens, 0.0, chat_tokens * 4 / 1e6 / job.training.epochs),
        StepPlan("tune_adapter", chats * job.training.epochs, chat_tokens, _hours(chat_tokens, ASSUMED_TRAINING_RATE), 500.0),
        StepPlan("answer_questions", 2 * asked, answered, _hours(answered, ASSUMED_PREFILL_RATE), answered * 4 / 1e6),
    ]


def search_hours(job: Job, texts: int, queries: int) -> dict[str, float]:
    """GPU hours of the search of step 4, for each kind of index."""
    exact = _hours(texts * queries * models.dimensions(job.models.embedder), ASSUMED_SEARCH_RATE)
    return {"exact": exact, "ivf": exact * ASSUMED_LISTS_SHARE}


def _index_kind(job: Job, texts: int, questions: int) -> str:
    if job.negatives.index != "auto":
        return job.negatives.index
    return ivf.kind(texts, _queries(job, texts, questions), models.dimensions(job.models.embedder))[0]


def _queries(job: Job, texts: int, questions: int) -> int:
    return questions if job.negatives.near_duplicate_similarity is None else questions + texts


def search_line(job: Job, steps: list[StepPlan]) -> str:
    """What the search of step 4 would cost with either kind of index, and which one the job gets."""
    rows = {step.step: step.rows for step in steps}
    texts, questions = rows["load_texts"], rows["mine_negatives"]
    hours = search_hours(job, texts, _queries(job, texts, questions))
    shown = ", ".join(f"{kind} {hours[kind]:.2g} GPU hours" for kind in hours)
    return f"Search of negatives: {shown}; negatives.index = {job.negatives.index} gives {_index_kind(job, texts, questions)}."


def table(steps: list[StepPlan]) -> Iterator[str]:
    """The plan as lines."""
    yield f"{'step':<18}{'rows':>14}{'tokens':>18}{'GPU hours':>12}{'disk MB':>12}"
    for step in steps:
        yield f"{step.step:<18}{step.rows:>14,}{step.tokens:>18,}{step.gpu_hours:>12.2f}{step.disk_mb:>12.1f}"
    yield "Hours are from assumed rates of one H100 with a 7B model, not measured on your machines."


def _hours(tokens: float, rate: float) -> float:
    return tokens / rate / 3600


def _sample(job: Job, tokenizer: str) -> tuple[list[str], int, int]:
    """Texts from the beginning of files spread over the corpus, their size in bytes, and that of the whole corpus."""
    from pathlib import Path

    files = corpus_files(job.corpus)
    cut = chunker(tokenizer if job.corpus.chunk_tokens else None, job.corpus.chunk_tokens)
    step = max(1, len(files) // SAMPLE_TEXTS)
    texts: list[str] = []
    read_bytes = 0
    for file in files[::step]:
        size = Path(file).stat().st_size
        rows = list(itertools.islice(read_rows(file, job.corpus.text_column), SAMPLE_TEXTS + 1))
        read_bytes += size if len(rows) <= SAMPLE_TEXTS else min(size, sum(len((row or "").encode()) for row in rows))
        texts += [chunk for row in rows if row for chunk in cut(normalised(row)) if chunk]
        if len(texts) >= SAMPLE_TEXTS:
            break
    return texts, read_bytes, sum(Path(file).stat().st_size for file in files)
