"""A run that waits: for its turn, where it costs little and leaves nothing behind when it is ended, and for others' resources."""

from pathlib import Path
from typing import Any

import psutil

from aloftrag import claims
from tests.end_to_end.driver import ended, environment, finish, start


def test_a_run_joins_no_cluster_before_its_turn_and_gives_its_claims_back_when_ended(job_file: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "The lift stops at noon."}\n')
    runs = tmp_path / "runs" / "test"
    with claims.hold(runs / ".turns", wait=True):
        process = start(["run", str(job_file()), "--runs", str(runs.parent), "--parallel", "1"])
        try:
            assert process.stdout is not None
            assert any("waiting for a turn: 1 others are ahead" in line for line in process.stdout)
            assert not psutil.Process(process.pid).children(), "Ray was started"
            assert [len(list(folder.glob("*.json"))) for folder in (runs / ".turns", runs / "en" / ".claims")] == [2, 1]
            process.terminate()
        finally:
            output = ended(process, 60)
        assert process.returncode == 128 + 15, output
        assert [len(list(folder.glob("*.json"))) for folder in (runs / ".turns", runs / "en" / ".claims")] == [1, 0]


# Others hold what the engine needs for much longer than Ray Data lets a step be without progress, which is half an hour if not told.
BUSY_CLUSTER = """
import threading, time
from aloftrag import cluster
connect = cluster.connect
def connect_and_wait():
    connect()
    import ray
    @ray.remote(num_cpus=ray.cluster_resources()["CPU"])
    def work():
        time.sleep(12)
    threading.Thread(target=ray.get, args=(work.remote(),)).start()
    time.sleep(1)
cluster.connect = connect_and_wait
"""


def test_a_step_waits_for_others_resources_as_long_as_it_takes(job_file: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "text {number}"}}\n' for number in range(9)))
    arguments = ["run", str(job_file()), "--runs", str(tmp_path / "runs"), "--only", "load_texts"]
    environ = {**environment(), "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "3"}
    assert "load_texts       done" in finish(start(arguments, BUSY_CLUSTER, environ))
