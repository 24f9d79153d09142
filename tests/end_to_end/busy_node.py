"""Two shards on two nodes, on one of which another run has the only GPU: ``python -m tests.end_to_end.busy_node FOLDER``."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from aloftrag import cluster
from aloftrag.retrieval import shards
from tests.steps.test_shards import TEXTS, write_vectors


def node_of(_: Any) -> str:
    """Where an actor is."""
    import ray

    return ray.get_runtime_context().get_node_id()


def main() -> None:
    """Print how many shards there are, and how many of them on the node whose GPU is free."""
    import ray
    from ray.cluster_utils import Cluster

    class Other:
        pass

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    nodes.add_node(num_cpus=2, num_gpus=1)
    nodes.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = nodes.address
    cluster.connect()
    other = ray.remote(Other).options(num_cpus=0, num_gpus=1).remote()
    busy = ray.get(other.__ray_call__.remote(node_of))
    index = Path(sys.argv[1])
    write_vectors(index, range(TEXTS), "0.parquet")
    shards.add(index, "exact")
    with shards.alive(index) as ask:
        placed = ray.get([actor.__ray_call__.remote(node_of) for actor in ask._actors])
    print(json.dumps({"shards": len(placed), "of_them_on_the_other_node": sum(node != busy for node in placed)}))
    cluster.disconnect()


if __name__ == "__main__":
    main()
