"""Step 6a's questions and their contexts (paper 4.3): what both models are shown.

The contexts are the n texts most similar to the question; when the positive is not among them it replaces the least similar
one and the question is hard (``evaluation.retrieval: as-is`` leaves it missing); shuffled by (seed, question id).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from aloftrag import artifacts, languages, models, resumable, schemas, seeds
from aloftrag.artifacts import Run
from aloftrag.corpus import text_id
from aloftrag.errors import RunError
from aloftrag.evaluation import questions as evaluation_questions
from aloftrag.evaluation.baselines import most_words_position
from aloftrag.evaluation.questions import Questions
from aloftrag.job import Job
from aloftrag.prompts import rag
from aloftrag.prompts.chat import encode_content
from aloftrag.retrieval import near_duplicates, shards
from aloftrag.retrieval.index import Index
from aloftrag.retrieval.text_store import TextStore
from aloftrag.retrieval.vectors import embed, embedder_use, vectors_of

_ASKED = pa.schema(
    [
        *(schemas.QUESTIONS.field(name) for name in ("question_id", "text_id", "question", "gold_answers")),
        schemas.NEGATIVES.field("also_positive"),
    ]
)


def prepare_questions(run: Run, destination: Path, work: Path) -> dict[str, Any]:
    """Write the questions with their contexts to ``destination`` (``schemas.QUESTIONS``); returns counts.

    Raises ``RunError`` when there is no question.
    """
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
        embed(run, added_texts, "text", indexes[1], work, columns=["text_id", "text"])
        shards.add(indexes[1], "exact")
    asked = artifacts.fresh_folder(work / "asked")
    artifacts.write_table(rows.select(_ASKED.names).to_arrow().cast(_ASKED), asked / "asked.parquet")
    vectors = work / "question_vectors"
    embed(run, asked, "query", vectors, work)
    with shards.alive(*indexes) as ask_shards:
        index = Index(ask_shards, shards.nprobe_of(indexes[0]))
        texts = TextStore(run.artifact("texts"), added_texts).texts
        clusters_of = near_duplicates.clusters_with(job, run.artifact("clusters"), index, work / "added_index", texts)
        resumable.map_rows(
            source=vectors,
            id_column="question_id",
            transform=lambda blocks: artifacts.map_blocks(
                blocks,
                _Contexts,
                fn_constructor_args=(job, index, run.artifact("texts"), added_texts, clusters_of),
                num_cpus=0,
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
        "embedders": embedder_use(work),
    }


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
