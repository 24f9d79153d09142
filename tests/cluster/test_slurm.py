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
from tests.end_to_end.driver import ended, environment

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


def raylets(address: str) -> list[str]:
    """The command lines of what is left of the nodes of the cluster at that address."""
    found = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [line for line in found if "raylet" in line[:400] and f"--gcs-address={address}" in line]


def test_a_cluster_of_the_jobs_nodes_runs_the_job_file_and_ends_with_it(slurm: dict[str, str], job_file: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(9)))
    address = f"127.0.0.1:2{int(slurm['SLURM_JOB_ID']) % 10000:04d}"
    arguments = [str(job_file()), "--runs", str(tmp_path / "runs"), "--only", "load_texts"]
    process = subprocess.Popen(["bash", str(SCRIPT), *arguments], env=slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen, deadline = 0, time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        seen = max(seen, len(raylets(address)))
        time.sleep(0.5)
    output = ended(process, 60)
    assert process.returncode == 0, output[-3000:]
    assert seen >= 2
    assert "load_texts       done" in output
    calls = (tmp_path / "srun.log").read_text()
    assert "--nodelist=node1 --overlap ray start --head" in calls
    assert "--nodes=1 --ntasks=1 --ntasks-per-node=1 --exclude=node1" in calls
    folder = Path(f"/tmp/aloftrag-job-{slurm['SLURM_JOB_ID']}")
    assert f"--node-ip-address=127.0.0.1 --port=2{int(slurm['SLURM_JOB_ID']) % 10000:04d} --temp-dir={folder}" in calls
    assert not folder.exists()
    deadline = time.monotonic() + 60
    while (left := raylets(address)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left


def test_without_a_job_file_it_says_how_to_use_it(slurm: dict[str, str]) -> None:
    found = subprocess.run(["bash", str(SCRIPT)], env=slurm, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert "usage: sbatch" in found.stderr
