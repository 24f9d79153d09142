"""The Slurm script with stand-ins for Slurm, whose nodes are processes of this machine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.nodes import free_port
from tests.end_to_end.driver import environment

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sh"

# Two nodes; a command for several tasks runs so many times.
SCONTROL = """#!/usr/bin/env bash
printf 'node1\\nnode2\\n'
"""
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> "$SRUN_LOG"
tasks=1
while [[ "$1" == --* ]]; do
  [[ "$1" == --ntasks=* ]] && tasks="${1#--ntasks=}"
  shift
done
[[ "$1" == hostname ]] && { echo "fd00::1 127.0.0.1 10.255.0.1 "; exit; }
trap 'kill $(jobs -p) 2> /dev/null' EXIT
for _ in $(seq "$tasks"); do "$@" & done
wait
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script of a job with two nodes."""
    for name, script in (("scontrol", SCONTROL), ("srun", SRUN)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
    python = Path(sys.executable).parent
    return {
        **environment(),
        "PATH": f"{tmp_path / 'bin'}:{python}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": str(free_port()),
        "SRUN_LOG": str(tmp_path / "srun.log"),
    }


def left_of(job: str) -> list[psutil.Process]:
    """The processes that a job of Slurm has started, which all have its number."""
    return [process for process in psutil.process_iter(["environ"]) if (process.info["environ"] or {}).get("SLURM_JOB_ID") == job]


@pytest.mark.cluster
def test_a_cluster_of_the_jobs_nodes_runs_the_job_file_and_ends_with_it(slurm: dict[str, str], job_file: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(9)))
    arguments = [str(job_file()), "--runs", str(tmp_path / "runs"), "--only", "load_texts"]
    found = subprocess.run(["bash", str(SCRIPT), *arguments], env=slurm, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert "load_texts       done" in found.stdout
    calls = (tmp_path / "srun.log").read_text()
    assert "--nodelist=node1 --overlap ray start --head" in calls
    assert "--nodes=1 --ntasks=1 --ntasks-per-node=1 --exclude=node1" in calls
    folder = Path(f"/tmp/aloftrag-job-{slurm['SLURM_JOB_ID']}")
    assert f"--node-ip-address=127.0.0.1 --port=2{int(slurm['SLURM_JOB_ID']) % 10000:04d} --temp-dir={folder}" in calls
    assert not folder.exists()
    deadline = time.monotonic() + 60
    while (left := left_of(slurm["SLURM_JOB_ID"])) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left


def test_without_a_job_file_it_says_how_to_use_it(slurm: dict[str, str]) -> None:
    found = subprocess.run(["bash", str(SCRIPT)], env=slurm, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert "usage: sbatch" in found.stderr
