"""``submit`` and ``logs`` against a Ray cluster of one node, and ``plan``."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aloftrag import cli
from tests.end_to_end.driver import environment, finish, start


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """The address of the job server of a Ray head on ports of its own; it ends with the test."""
    dashboard = free_port()
    options = [
        "--head",
        "--block",
        f"--port={free_port()}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--num-cpus=8", "--dashboard-host=127.0.0.1"]
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and head.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", dashboard), timeout=1):
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # told to end, its parts wait half a minute for one another
        head.wait(timeout=60)


def test_each_language_is_a_job_whose_end_and_output_can_be_seen(job_file: Any, tmp_path: Path, cluster: str) -> None:
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "a text alone"}) + "\n")
    path = job_file(languages=["en", "de"])
    process = start(["submit", str(path), "--address", cluster, "--runs", str(tmp_path / "runs"), "--follow"])
    output, _ = process.communicate(timeout=300)
    lines = [line.split("\t") for line in output.splitlines() if "\t" in line]
    ids = dict(lines[:2])
    assert list(ids) == ["en", "de"]
    assert ["en", "FAILED"] in lines, output
    assert ["de", "FAILED"] in lines
    assert process.returncode == 1
    logs = finish(start(["logs", ids["de"], "--address", cluster]))
    assert "at least 2 different texts are needed" in logs


def test_an_address_where_nobody_answers_is_exit_code_1(job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    assert cli.main(["submit", str(job_file()), "--address", address]) == 1
    assert address in capsys.readouterr().err


def test_a_plan_tells_of_each_step_and_runs_nothing(job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"The lift number {n} stops at noon."} for n in range(50)] * 2
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["plan", str(job_file())]) == 0
    printed = capsys.readouterr().out
    rows_of = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in printed.splitlines() if line.startswith(("load", "tune"))}
    assert rows_of == {"load_texts": 50, "tune_adapter": 50}
    assert "assumed" in printed
    assert "negatives.index = auto gives exact" in printed
    assert not (tmp_path / "runs").exists()
