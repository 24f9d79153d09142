"""Step 4 killed while it embeds, adds and searches; and on two nodes, of which one dies."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.end_to_end.driver import environment
from tests.end_to_end.step_four import TEXTS

pytestmark = pytest.mark.faults

COMMAND = [sys.executable, "-m", "tests.end_to_end.step_four"]


def whole(folder: Path, *arguments: object) -> dict[str, Any]:
    """Run the step to its end; what it printed."""
    command = [*COMMAND, str(folder), *map(str, arguments)]
    environ = {**environment(), "RAY_AUTH_MODE": "disabled"}  # nodes that a test starts in its process know no token
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr[-5000:]
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def killed_when(folder: Path, condition: Callable[[], bool]) -> None:
    """SIGKILL the driver as soon as ``condition`` holds."""
    process = subprocess.Popen([*COMMAND, str(folder)], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def result(folder: Path) -> dict[str, list[dict[str, Any]]]:
    run = folder / "step-four" / "en"
    return {
        name: pl.read_parquet(run / name / "*.parquet").sort(by).to_dicts()
        for name, by in (("negatives", "question_id"), ("clusters", "text_id"))
    }


def found(printed: dict[str, Any]) -> dict[str, Any]:
    """The counts of what was found, without how long it took."""
    return {name: count for name, count in printed["counts"].items() if name != "embedders"}


def written(folder: Path, pattern: str) -> set[tuple[str, int]]:
    """Files and when they were written."""
    return {(str(path), path.stat().st_mtime_ns) for path in folder.glob(pattern)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an undisturbed run on one node prints, and its result."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return whole(folder), result(folder)


def test_killed_while_it_embeds_adds_and_searches_it_ends_as_if_it_had_not_been(undisturbed: Any, tmp_path: Path) -> None:
    run, committed = "step-four/en", "/*/*[!g].parquet"
    moments = [  # what is there when it is killed, and what that means is written
        (f"work/index-checkpoints{committed}", f"{run}/index/*.parquet"),
        (f"{run}/index/shards/[0-9]*/ids.npy", f"{run}/index/shards/[0-9]*/ids.npy"),
        (f"work/mined-checkpoints{committed}", f"{run}/negatives/*.parquet"),
    ]
    finished = []  # of each moment: how many blocks or shards, and the files
    for moment, made in moments:
        killed_when(tmp_path, lambda moment=moment: any(tmp_path.glob(moment)))
        finished.append((len(list(tmp_path.glob(moment))), written(tmp_path, made)))
    printed = whole(tmp_path)
    for (_, made), (count, files) in zip(moments, finished, strict=True):
        assert len(files & written(tmp_path, made)) >= count > 0  # it was not made again
    assert result(tmp_path) == undisturbed[1]
    assert found(printed) == found(undisturbed[0])


def test_two_nodes_hold_shards_and_one_may_die_while_questions_are_searched(undisturbed: Any, tmp_path: Path) -> None:
    printed = whole(tmp_path, 2, "kill")
    assert printed["shards_on_nodes"] == [1, 1]
    assert printed["nodes_left"] == 1
    assert 0 < printed["searched_at_kill"] < TEXTS
    assert result(tmp_path) == undisturbed[1]
    assert found(printed) == found(undisturbed[0])


def test_shards_do_not_wait_for_the_gpus_of_one_node(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.end_to_end.busy_node", str(tmp_path / "index")]
    environ = {**environment(), "RAY_AUTH_MODE": "disabled"}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-5000:]
    assert json.loads(ended.stdout.splitlines()[-1]) == {"shards": 2, "of_them_on_the_other_node": 2}


def test_texts_that_do_not_fit_into_the_object_store_come_through(tmp_path: Path) -> None:
    from tests.end_to_end import small_store

    command = [sys.executable, "-m", "tests.end_to_end.small_store", str(tmp_path)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr[-5000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["bytes"] > 1.2 * small_store.STORE
    assert found["rows"] == dict.fromkeys(("texts", "annotations", "negatives"), small_store.TEXTS)
    assert found["chats"] > 0
    assert found["spilled"] > 0
