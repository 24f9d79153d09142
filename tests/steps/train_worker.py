"""One worker of a training run without Ray: ``python -m tests.steps.train_worker FOLDER RANK COUNT PORT``.

FOLDER holds ``settings.json`` (keys of ``training``), ``model`` (where the base model lies) and the rows as ``train`` and ``validation``.
"""

import json
import os
import sys
from pathlib import Path

import torch

from aloftrag.job import Training
from aloftrag.training import loop
from aloftrag.training.row_store import RowStore
from aloftrag.training.worker import Worker


def main() -> None:
    """Train to the end, from the last checkpoint on."""
    folder, rank, count, port = Path(sys.argv[1]), *map(int, sys.argv[2:])
    torch.set_num_threads(1)
    settings = Training.model_validate(json.loads((folder / "settings.json").read_text()))
    if count > 1 or settings.strategy != "ddp":
        os.environ.update(
            DS_ACCELERATOR="cpu",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        torch.distributed.init_process_group("gloo", rank=rank, world_size=count)
    tuning = loop.Tuning(
        Path((folder / "model").read_text()), RowStore(folder / "train"), RowStore(folder / "validation"), settings, 0, folder
    )
    loop.train(tuning, Worker(rank, count))


if __name__ == "__main__":
    main()
