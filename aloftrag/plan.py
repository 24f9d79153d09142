"""``aloftrag plan``: what a run would cost, from a sample of the corpus; runs nothing.

The sample's texts are put into the very prompts of the steps and counted in the model's tokens. How fast an engine, an embedder and
a trainer are is taken from a finished run with the same models (``--rates RUN``), else assumed; so is how much of what is written is
kept for training.
"""

import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from aloftrag import artifacts, languages, models, seeds, storage
from aloftrag.cluster import hold_fits_gpus
from aloftrag.corpus import WHOLE_FILES, chunker, normalised, read_rows, text_id
from aloftrag.errors import UsageError
from aloftrag.evaluation.questions import gold_files, read_gold
from aloftrag.job import Job
from aloftrag.progress import duration
from aloftrag.prompts import rag, rate_qa, rate_text, write_qa
from aloftrag.prompts.chat import encode_content
from aloftrag.prompts.layout import Layout
from aloftrag.prompts.worked_examples import worked_examples
from aloftrag.prompts.write_qa import QuestionAnswer
from aloftrag.rates import ASSUMED, Rates
from aloftrag.retrieval import ivf
from aloftrag.steps.load_texts import corpus_files
from aloftrag.training.chats import plan_chats
from aloftrag.training.model import adapter_weights

SAMPLE_TEXTS = 1000
_PROMPT_SAMPLE = 50  # of them, whose prompts are written out
_RATING_TOKENS, _QUESTION_TOKENS = 4, 60  # of a reply
_QUESTION, _ANSWER = "Which station on the northern coast was the first to measure the wind?", "the one on the headland"
_LISTS_SHARE = 1 / 32  # of the texts that a search of inverted lists looks at
_ID_BYTES = 32
_GPUS_OF_A_NODE = 8  # at most
_BYTES_OF_A_WEIGHT = 4 + 3 * (4 + 8)  # the adapter; three checkpoints, with the optimiser, while the oldest makes room for a new one
_PROMPTS_OF_A_QUESTION = 3  # base: whether it keeps the form by itself, and its reply; adapter: its reply


@dataclass(frozen=True)
class StepPlan:
    """One step of the plan."""

    step: str
    rows: int
    tokens: int
    hours: float  # on so many GPUs
    gpu_hours: float
    disk_mb: float


@dataclass(frozen=True)
class Sample:
    """Of a corpus: texts, and what they say about all of it."""

    texts: list[str]  # distinct
    rows: int  # distinct texts of the whole corpus, about
    characters: float  # of the whole corpus


@dataclass(frozen=True)
class _Tokens:
    """Means over the sample, in the model's tokens."""

    text: float
    rating: float  # the prompt and the reply that rate one text
    writing: float  # all prompts and replies that write its questions, and rate those
    questions: float  # that are asked for, of one text
    chat: float  # one chat of training, without its questions
    answering: float  # one question of the evaluation, asked of one model


def plan(job: Job, rates: Rates = ASSUMED, gpus: int = 1, sample: Sample | None = None) -> list[StepPlan]:
    """Rows, tokens, hours on so many GPUs, and disk of each step of a job for one language; raises ``RunError`` when it needs more."""
    hold_fits_gpus(job, _nodes(gpus))
    sample = sample or sample_of(job)
    tokens = _tokens(job, sample.texts)
    texts, questions = sample.rows, round(sample.rows * tokens.questions * rates.asked * rates.written)
    kept = round(questions * rates.kept * (1 - job.training.validation) * (1.0 if job.evaluation.gold else 1 - job.evaluation.held_out))
    chats, turns = _chats(job, sample, tokens.questions, kept)
    asked = _asked(job, questions * rates.kept)
    kind = _index_kind(job, texts, questions)
    embedded = sample.characters + questions * len(_QUESTION)
    engines = _configured(job.resources.engine_replicas, max(1, _most(job, gpus) // job.resources.tensor_parallel))
    annotated = texts * (tokens.rating + rates.asked * tokens.writing)
    on_server = models.is_server(job.models.llm)
    workers = _workers(job, _most(job, gpus))

    def at_most(replicas: int, rows: int) -> int:
        """No more than there are blocks of rows."""
        return min(replicas, max(1, math.ceil(rows / artifacts.BLOCK_ROWS)))

    def step(name: str, rows: int, work: float, rate: float, side_by_side: int, disk_mb: float, more_seconds: float = 0.0) -> StepPlan:
        seconds = work / rate / side_by_side + more_seconds / side_by_side + rates.start_up.get(name, 0.0)
        used = side_by_side * (job.resources.tensor_parallel if name in ("annotate", "answer_questions") else 1)
        is_on_gpu = name not in ("load_texts", "assemble_chats") and not (name == "annotate" and on_server)
        return StepPlan(name, rows, round(work), seconds / 3600, seconds * used / 3600 if is_on_gpu else 0.0, disk_mb)

    text_mb = sample.characters / 1e6
    load = step("load_texts", texts, sample.characters, rates.loading, 1, text_mb)
    chat = tokens.chat + turns * _QUESTION_TOKENS
    chat_tokens = chats * job.training.epochs * chat
    disk_of_questions = asked * tokens.answering * 5 / 1e6
    disk_of_training = adapter_weights(models.local_folder(job.models.llm, "llm"), job.training) * _BYTES_OF_A_WEIGHT / 1e6
    assemble = step("assemble_chats", chats, chats, rates.assembling, 1, chats * chat * 12 / 1e6)
    return [
        StepPlan(load.step, texts, round(texts * tokens.text), load.hours, 0.0, text_mb),
        step("annotate", questions, annotated, rates.annotating, 1 if on_server else at_most(engines, texts), questions * 1e-3),
        step(
            "mine_negatives",
            questions,
            embedded,
            rates.embedding,
            at_most(_configured(job.resources.embedder_replicas, _most(job, gpus)), texts),
            (2 * 2 * models.dimensions(job.models.embedder) + _ID_BYTES) * texts / 1e6 + questions * 1e-3,
            3600 * search_hours(job, texts, _queries(job, texts, questions), rates)[kind],
        ),
        StepPlan(assemble.step, chats, round(chats * chat), assemble.hours, 0.0, assemble.disk_mb),
        step("tune_adapter", chats * job.training.epochs, chat_tokens, rates.training, workers, disk_of_training),
        step(
            "answer_questions",
            2 * asked,
            _PROMPTS_OF_A_QUESTION * asked * tokens.answering,
            rates.answering,
            at_most(engines, asked),
            disk_of_questions,
        ),
    ]


def _asked(job: Job, kept: float) -> int:
    """How many questions the evaluation asks."""
    if job.evaluation.gold:
        there: float = sum(len(read_gold(file)) for file in gold_files(job))
    else:
        there = kept * job.evaluation.held_out
    return round(min(there, job.evaluation.max_questions or there))


def _chats(job: Job, sample: Sample, questions: float, kept: int) -> tuple[int, float]:
    """How many chats ``kept`` questions give, and with how many turns: as step 5a plans them for the sample, with other texts drawn."""
    if job.training.questions_per_chat == 1:
        return kept, 1.0
    random = seeds.generator(job.seed, "plan", job.language)
    ids = [str(number) for number in range(len(sample.texts))]
    share = kept / max(1.0, sample.rows * questions)
    rows = [
        {
            "question_id": f"{text}-{number}",
            "text_id": text,
            "question": _QUESTION,
            "answer": _ANSWER,
            "negative_ids": random.sample(ids, min(len(ids), job.contexts)),
            "also_positive": [],
            "doubtful": [],
            "split": "train",
        }
        for text in ids
        for number in range(round(questions))
        if random.random() < share
    ]
    plans = list(plan_chats(pl.DataFrame(rows), job)) if rows else []
    if not plans:
        return 0, 0.0
    return round(len(plans) * kept / len(rows)), sum(len(found.turns) for found in plans) / len(plans)


def _configured(replicas: int | Literal["auto"], auto: int) -> int:
    return auto if replicas == "auto" else replicas


def _most(job: Job, gpus: int) -> int:
    return min(gpus, job.resources.max_gpus or gpus)


def _workers(job: Job, gpus: int) -> int:
    from aloftrag.steps.tune_adapter import worker_count

    workers = worker_count(job, gpus, lambda most: min(most, gpus))
    return workers if isinstance(workers, int) else workers[1]


def _tokens(job: Job, texts: Sequence[str]) -> _Tokens:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.local_folder(job.models.llm, "llm"))
    shown = texts[:: max(1, len(texts) // _PROMPT_SAMPLE)][:_PROMPT_SAMPLE]
    language = languages.english_name(job.language)
    examples = worked_examples(job.language, job.annotation.worked_examples)
    layout: Layout = "instructions-first" if job.annotation.layout == "auto" else job.annotation.layout
    written = QuestionAnswer(_QUESTION, _ANSWER)
    rating = writing = questions = 0
    for text in shown:
        rating += len(rate_text.prompt(text, language, examples, layout).token_ids(tokenizer)) + _RATING_TOKENS
        several = job.annotation.questions_per_text > 1
        parts: list[str | None] = [*write_qa.parts(text, job.annotation.questions_per_text)] if several else [None]
        parts = parts or [None]
        questions += len(parts)
        for part in parts:
            prompt = write_qa.prompt(text, part, job.language, language, examples, layout)
            writing += len(prompt.token_ids(tokenizer)) + _QUESTION_TOKENS
            if job.annotation.rate_qa:
                for rate in (rate_qa.question_prompt, rate_qa.answer_prompt):
                    writing += len(rate(text, written, language, layout).token_ids(tokenizer)) + _RATING_TOKENS
    each = sum(len(encode_content(tokenizer, text)) for text in shown) / len(shown)
    around = len(encode_content(tokenizer, "".join(turn["content"] for turn in rag.first_turns([], _QUESTION, language)))) + 16
    heading = 8  # of a context
    fewest, most = job.context_range
    longest = models.longest_prompt(job.models.llm, job.training.max_tokens)
    return _Tokens(
        text=each,
        rating=rating / len(shown),
        writing=writing / len(shown),
        questions=questions / len(shown),
        chat=min(longest, (fewest + most) / 2 * (each + heading) + around),
        answering=min(longest, most * (each + heading) + around + _QUESTION_TOKENS),
    )


def search_hours(job: Job, texts: int, queries: int, rates: Rates = ASSUMED) -> dict[str, float]:
    """GPU hours of the search of step 4, for each kind of index."""
    exact = texts * queries * models.dimensions(job.models.embedder) / rates.searching / 3600
    return {"exact": exact, "ivf": exact * _LISTS_SHARE}


def _index_kind(job: Job, texts: int, questions: int) -> str:
    if job.negatives.index != "auto":
        return job.negatives.index
    return ivf.kind(texts, _queries(job, texts, questions), models.dimensions(job.models.embedder))[0]


def _queries(job: Job, texts: int, questions: int) -> int:
    return questions if job.negatives.near_duplicate_similarity is None else questions + texts


def _nodes(gpus: int) -> list[int]:
    """So many GPUs, by node."""
    return [min(_GPUS_OF_A_NODE, gpus - first) for first in range(0, gpus, _GPUS_OF_A_NODE)]


def search_line(job: Job, steps: Sequence[StepPlan], gpus: int) -> str:
    """What the search of step 4 would cost with either kind of index, which one the job gets, and the memory of a shard."""
    rows = {step.step: step.rows for step in steps}
    texts, questions = rows["load_texts"], rows["mine_negatives"]
    hours = search_hours(job, texts, _queries(job, texts, questions))
    shown = ", ".join(f"{kind} {hours[kind]:.2g} GPU hours" for kind in hours)
    dimensions = models.dimensions(job.models.embedder)
    memory = texts * (2 * dimensions + _ID_BYTES) / 1e9
    nodes = len(_nodes(gpus))
    exact_up_to = math.sqrt(ivf.EXACT_UP_TO / dimensions / (_queries(job, texts, questions) / max(1, texts)))
    return (
        f"Search of negatives: {shown}; negatives.index = {job.negatives.index} gives {_index_kind(job, texts, questions)} "
        f"(auto: exact up to {exact_up_to:,.0f} texts). "
        f"Each shard holds {memory / nodes:.2g} GB in memory, with one on each node of {_GPUS_OF_A_NODE} GPUs (number of nodes: {nodes}); "
        "where that is over a quarter of a node's memory, there are more of them."
    )


def table(steps: Sequence[StepPlan], rates: Rates, gpus: int) -> Iterator[str]:
    """The plan as lines."""

    def line(name: str, counts: str, hours: float, gpu_hours: float, disk_mb: float) -> str:
        return f"{name:<18}{counts:>35}{duration(3600 * hours):>14}{gpu_hours:>12.2f}{disk_mb:>14,.1f}"

    yield f"{'step':<18}{'rows':>15}{'tokens':>20}{f'time, {gpus} GPU':>14}{'GPU hours':>12}{'disk MB':>14}"
    for step in steps:
        yield line(step.step, f"{step.rows:,}{step.tokens:>20,}", step.hours, step.gpu_hours, step.disk_mb)
    yield line("together", "", *(sum(getattr(step, name) for step in steps) for name in ("hours", "gpu_hours", "disk_mb")))
    yield f"Rates are {rates.source}."


def sample_of(job: Job) -> Sample:
    """Texts from the beginning of files spread over the corpus; raises ``UsageError`` when they hold none."""
    files = corpus_files(job.corpus)
    folder = str(models.local_folder(job.models.llm, "llm"))
    cut = chunker(folder if job.corpus.chunk_tokens else None, job.corpus.chunk_tokens)
    sampled = files[:: max(1, len(files) // SAMPLE_TEXTS)]
    each = -(-SAMPLE_TEXTS // len(sampled))
    texts: list[str] = []
    rows = 0.0  # of the sampled files
    read = 0
    for file in sampled:
        raw = list(itertools.islice(read_rows(file, job.corpus.text_column), each))
        texts += [chunk for row in raw if row for chunk in cut(normalised(row)) if chunk]
        read += len(raw)
        rows += _rows_of(file, len(raw), each)
    distinct = list({text_id(text): text for text in texts}.values())
    if not distinct:
        raise UsageError(f"corpus.paths: the first rows of {len(sampled)} files hold no text")
    sizes = {file: storage.at(file).stat().st_size for file in files}
    times = rows / max(1, read) * sum(sizes.values()) / max(1, sum(sizes[file] for file in sampled))
    return Sample(distinct, round(len(distinct) * times), sum(map(len, distinct)) * times)


def _rows_of(file: str, read: int, wanted: int) -> float:
    """About how many rows a file has, of which the first ``wanted`` were ``read``."""
    path = storage.at(file)
    if path.suffix.lower() == ".parquet":
        return artifacts.rows_of(path)
    if read < wanted or path.suffix.lower() in WHOLE_FILES:
        return read
    with path.open("rb") as lines:
        taken = 0

        def counted() -> Iterator[str]:
            nonlocal taken
            for line in lines:
                taken += len(line)
                yield line.decode("utf-8", "replace")

        rows: Iterator[object] = counted()
        if path.suffix.lower() == ".csv":  # a record of which may have several lines
            csv.field_size_limit(2**31 - 1)
            rows = csv.reader(counted())
            next(rows)
            taken = 0
        found = sum(1 for _ in itertools.islice(rows, wanted))
    return path.stat().st_size * found / max(1, taken)
