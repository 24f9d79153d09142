"""A run without a cluster listens on loopback alone."""

import json
from pathlib import Path
from typing import Any

from tests.end_to_end.driver import finish, start

# When the step is done: the addresses on which processes of the run listen.
LISTENING = """
import psutil
from aloftrag import cluster
disconnect = cluster.disconnect
def tell_and_disconnect():
    run = psutil.Process()
    for process in [run, *run.children(recursive=True)]:
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                print("LISTENS", connection.laddr.ip)
    disconnect()
cluster.disconnect = tell_and_disconnect
"""


def test_a_run_without_a_cluster_listens_on_loopback_alone(job_file: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(9)))
    output = finish(start(["run", str(job_file()), "--runs", str(tmp_path / "runs"), "--only", "load_texts"], LISTENING))
    listening = {line.split()[1] for line in output.splitlines() if line.startswith("LISTENS")}
    assert listening
    assert all(address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1") for address in listening), listening
