"""Joining a Ray cluster, or starting Ray on this machine."""

import logging
import os


def connect() -> None:
    """Connect to the Ray cluster at ``RAY_ADDRESS``, else start Ray on this machine."""
    import ray
    import ray.data

    if not ray.is_initialized():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            # A resumed step needs an actor and a task beside the pool; with two logical CPUs it would wait for ever.
            cpus = max(8, os.cpu_count() or 1)
            # "local": not some other cluster that once ran on this machine.
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False  # it starts 32 actors to read a checkpoint of a few files
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)


def disconnect() -> None:
    """Leave the cluster; Ray that was started here ends."""
    import ray

    ray.shutdown()
