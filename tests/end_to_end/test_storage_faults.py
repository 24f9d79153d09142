"""A disk that is full, and one that takes no writes for a while: the run stops with one line, and the same command goes on."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.driver import finish, some_files, start, wait_for
from tests.end_to_end.small_job import hold_whole

pytestmark = pytest.mark.faults


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """Leave so many bytes free."""
    filler = folder / "filler"
    free = os.statvfs(folder)
    with filler.open("wb") as file:
        file.write(b"\0" * (free.f_bavail * free.f_frsize - left))
    return filler


@pytest.mark.parametrize("left", [60_000, 400_000], ids=["in step 1", "in step 4"])
def test_a_full_disk_stops_the_run_in_one_line(small_job: Path, disk: Path, left: int) -> None:
    arguments = ["run", str(small_job), "--runs", str(disk / "runs")]
    filler = fill(disk, left)
    process = start(arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output[-3000:]
    assert "No space left on device" in output.splitlines()[-1], output[-3000:]
    assert output.splitlines()[-1].startswith("aloftrag: ")
    filler.unlink()
    finish(start(arguments))
    hold_whole(disk / "runs" / "test" / "en")


def test_a_storage_that_fails_for_a_while_stops_the_run_in_one_line(small_job: Path, disk: Path) -> None:
    arguments = ["run", str(small_job), "--runs", str(disk / "runs")]
    process = start(arguments)
    wait_for(process, some_files(disk, "runs/test/en/.work/annotate-*/annotated_texts-checkpoints/*/*[!g].parquet"))
    while subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode:
        time.sleep(0.01)  # a file is being written just now
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output[-3000:]
    assert "Read-only file system" in output.splitlines()[-1], output[-3000:]
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    finish(start(arguments))
    hold_whole(disk / "runs" / "test" / "en")
