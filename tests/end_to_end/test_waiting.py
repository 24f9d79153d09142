"""A run that waits for its turn: a process that costs little, and that leaves nothing behind when it is ended."""

from pathlib import Path
from typing import Any

import psutil

from aloftrag import claims
from tests.end_to_end.driver import ended, start


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
