"""A Ray cluster of several nodes on this machine: processes of their own, with resources of their own, on ports of their own."""

import contextlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.cluster.scripted import STAND_INS
from tests.end_to_end.driver import environment

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-these-tests-alone"}


_PORTS = random.sample(range(20_000, 32_000), 12_000)  # which neither Ray nor the system give to others meanwhile


def free_port() -> int:
    """A port that nobody has, and that is given once."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("0.0.0.0", port := _PORTS.pop()))
            return port


class Nodes:
    """The head, with the job server, and the nodes that were added."""

    def __init__(self, folder: Path, environ: dict[str, str], head_cpus: int):
        self._folder, self.environ = folder, environ
        self._processes: list[subprocess.Popen[bytes]] = []
        self._disks: list[str] = []
        self._port, dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.ray_address = f"127.0.0.1:{self._port}"
        self._start("--head", f"--port={self._port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", cpus=head_cpus, gpus=0)
        self._wait_for(dashboard)

    def add(self, cpus: int = 4, gpus: int = 0) -> int:
        """Start a node; returns its number. One after the other: two that start at once may give their sockets the same name."""
        # A disk of its own, as on a machine: a node that sets up a job's code first empties that folder, with other nodes' drivers in it.
        self._disks.append(tempfile.mkdtemp(prefix="node"))  # no pytest folder: Ray's sockets below it must have short names
        self._start(f"--address={self.ray_address}", f"--temp-dir={self._disks[-1]}", cpus=cpus, gpus=gpus)
        number = len(self._processes) - 1
        log, deadline = self._folder / f"node-{number}.log", time.monotonic() + 120
        while "will now block" not in log.read_text():
            assert self._processes[number].poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        return number

    def kill(self, number: int) -> None:
        """SIGKILL everything of a node."""
        for process in self._parts(number):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._processes[number].wait(timeout=60)

    def holder_of(self, title: str) -> int | None:
        """The number of a node, but the head, with a process whose title begins so; None when there is none."""
        return next((number for number in range(1, len(self._processes)) if self.count(title, number)), None)

    def count(self, title: str, number: int) -> int:
        """How many processes of a node have a title that begins so."""
        found = 0
        for process in self._parts(number):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += " ".join(process.cmdline()).startswith(title)
        return found

    def _parts(self, number: int) -> list[psutil.Process]:
        """All processes of a node."""
        with contextlib.suppress(psutil.NoSuchProcess):
            whole = psutil.Process(self._processes[number].pid)
            return [whole, *whole.children(recursive=True)]
        return []

    def wait_for_nodes(self, count: int) -> None:
        """Until so many nodes, with the head, are in the cluster."""
        code = (
            "import ray, time\n"
            f"ray.init({self.ray_address!r}, logging_level='ERROR', log_to_driver=False)\n"
            f"while sum(node['Alive'] for node in ray.nodes()) != {count}: time.sleep(0.2)"
        )
        subprocess.run([sys.executable, "-c", code], env=self.environ, timeout=120, check=True)

    def _start(self, *options: str, cpus: int, gpus: int) -> None:
        number = len(self._processes)
        ports = ["--dashboard-agent-listen-port", "--dashboard-agent-grpc-port", "--metrics-export-port", "--runtime-env-agent-port"]
        of_its_own = [f"{port}={free_port()}" for port in ports]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options, *of_its_own]
        command += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--object-store-memory=200000000", "--disable-usage-stats"]
        with (self._folder / f"node-{number}.log").open("w") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=self.environ, start_new_session=True))

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._processes[0].poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.5)
        raise AssertionError((self._folder / "node-0.log").read_text()[-3000:])

    def close(self) -> None:
        for number in reversed(range(len(self._processes))):
            self.kill(number)
        for disk in self._disks:
            shutil.rmtree(disk, ignore_errors=True)


@contextlib.contextmanager
def cluster(folder: Path, *, head_cpus: int = 2, scripted: bool = False, **environ: str) -> Iterator[Nodes]:
    """A cluster that ends with the body; ``scripted``: its engines are those of ``tests.cluster.scripted``."""
    folder.mkdir(parents=True, exist_ok=True)
    nodes = Nodes(folder, {**environment(), **TOKEN, **environ, **(STAND_INS if scripted else {})}, head_cpus)
    try:
        yield nodes
    finally:
        nodes.close()
