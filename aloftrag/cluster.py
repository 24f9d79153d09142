"""Joining a Ray cluster, or starting Ray on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


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
            with _no_cloud_look_up():
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False  # it starts 32 actors to read a checkpoint of a few files
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)


@contextmanager
def _no_cloud_look_up() -> Iterator[None]:
    """Keep Ray's head from asking the metadata servers of three cloud providers where it runs.

    It does so even with usage statistics off and offers no switch; its plain HTTP requests go to a proxy that is not there.
    """
    proxies = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}
    before = {name: os.environ.get(name) for name in proxies}
    os.environ.update(proxies)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def disconnect() -> None:
    """Leave the cluster; Ray that was started here ends."""
    import ray

    ray.shutdown()
