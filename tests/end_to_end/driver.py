"""Runs of the command line in a process of their own, which tests kill."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

_AT_START = dict(os.environ)  # Ray started in this process changes it


def environment() -> dict[str, str]:
    """The environment of the tests, without a cluster to join."""
    return {name: value for name, value in _AT_START.items() if name != "RAY_ADDRESS"}


def start(arguments: list[str], before: str = "", environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """``aloftrag ARGUMENTS`` as a process group of its own; ``before`` is Python code that runs first."""
    code = f"{before}\nimport sys\nfrom aloftrag.cli import main\nsys.exit(main({arguments!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ or environment(),
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], seconds: float) -> str:
    """The output of a process, whatever its end; nothing of it is left running when it takes too long."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        process.kill()


def finish(process: subprocess.Popen[str], seconds: float = 600) -> str:
    """The output of a process that must end well."""
    output = ended(process, seconds)
    assert process.returncode == 0, output[-5000:]
    return output


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = 300) -> None:
    """Wait until ``condition`` holds while the driver runs; it is killed when that never comes."""
    deadline = time.monotonic() + seconds
    while not (came := condition()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if not came:
        process.kill()
        pytest.fail(f"the moment never came: {process.communicate()[0][-5000:]}")


def kill_when(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """SIGKILL the driver as soon as ``condition`` holds; it must not have ended before."""
    wait_for(process, condition)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def some_files(folder: Path, pattern: str) -> Callable[[], bool]:
    """A condition: a file that matches is there."""
    return lambda: any(folder.glob(pattern))


def workers(driver: int, name: str) -> list[int]:
    """The processes below a driver whose title begins so."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    processes = {int(pid): (int(parent), title) for pid, parent, title in (line.split(None, 2) for line in listed.splitlines())}

    def is_below(pid: int) -> bool:
        while pid in processes and pid != driver:
            pid = processes[pid][0]
        return pid == driver

    return [pid for pid, (_, title) in processes.items() if title.startswith(name) and is_below(pid)]
