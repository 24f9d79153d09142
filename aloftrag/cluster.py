"""Joining a Ray cluster, or starting Ray on this machine."""

import logging
import os
import warnings


def connect() -> None:
    """Connect to the Ray cluster at ``RAY_ADDRESS``, else start Ray on this machine."""
    has_cluster = bool(os.environ.get("RAY_ADDRESS"))
    if not has_cluster:
        _stay_on_this_machine()  # before Ray is imported
    import ray
    import ray.data

    if not ray.is_initialized():
        if has_cluster:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            # A resumed step needs an actor and a task beside the pool; with two logical CPUs it would wait for ever.
            cpus = max(8, os.cpu_count() or 1)
            ray.init(
                address="local",  # not some other cluster that once ran on this machine
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False  # it starts 32 actors to read a checkpoint of a few files
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")  # a small run has fewer blocks than tasks
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)


def _stay_on_this_machine() -> None:
    """Keep Ray from looking for things elsewhere that a local cluster does not have.

    Its head asks the metadata servers of three cloud providers where it runs, even with usage statistics off, in plain HTTP,
    which goes to a proxy that is not there. Without a dashboard, Ray Train would look for that of whatever cluster it finds.
    And without the last one, whose name is misleading, its processes find each other under this machine's outside address,
    whose name is asked of a name server; with it under 127.0.0.1.
    """
    nowhere = "http://127.0.0.1:9"
    os.environ.update(
        http_proxy=nowhere,
        no_proxy="127.0.0.1,localhost",
        RAY_API_SERVER_ADDRESS=nowhere,
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    )


def disconnect() -> None:
    """Leave the cluster; Ray that was started here ends."""
    import ray

    ray.shutdown()
