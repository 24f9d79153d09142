"""Joining a Ray cluster, or starting Ray on this machine; what of it a run takes."""

import logging
import math
import os
import sys
import warnings
from pathlib import Path
from urllib.parse import urlsplit

from aloftrag import claims
from aloftrag.artifacts import Run
from aloftrag.cpus import usable_cpus
from aloftrag.errors import RunError
from aloftrag.job import Job

_CPUS_FOR_TASKS = 2  # actors with a model hold none, or those of several runs could leave none to read and write rows with


def connect() -> None:
    """Connect to the Ray cluster at ``RAY_ADDRESS``, else start Ray on this machine.

    Raises ``RunError`` where no cluster answers.
    """
    has_cluster = bool(os.environ.get("RAY_ADDRESS"))
    if has_cluster:
        use_token()
    else:
        _stay_on_this_machine()  # before Ray is imported
    import ray
    import ray.data

    if not ray.is_initialized():
        if has_cluster:
            _join()
        else:
            # Logical ones: with two, what reads, writes and trains would wait for each other.
            cpus = max(8, usable_cpus())
            ray.init(
                address="local",  # not some other cluster that once ran on this machine
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a step may wait for GPUs for hours; that an engine hangs is seen in its actor
    # It parts the CPUs among all datasets of the cluster, in whole numbers: with more of them than CPUs of a node each has none, and writes
    # when all else is done, so that a kill would lose everything.
    context.op_resource_reservation_enabled = False
    context.use_datasource_v2 = False  # it starts 32 actors to read a checkpoint of a few files
    for kind in ("maximum number of concurrent tasks", "minimum number of concurrent actors"):
        warnings.filterwarnings("ignore", f"The {kind}")  # a small run has fewer blocks than tasks or actors
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)


def _join() -> None:
    import ray
    from ray.exceptions import AuthenticationError

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        address = os.environ["RAY_ADDRESS"]
        raise RunError(f"RAY_ADDRESS={address}: no cluster can be joined there, expected auto or HEAD:6379 ({said})") from error


def use_token() -> bool:
    """Show a cluster the token, where there is one in the places where Ray looks for it; whether there is.

    Ray reads it itself, but only when told so before it is imported.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if found := "RAY_AUTH_TOKEN" in os.environ or path.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    return found


def gpus() -> int:
    """How many GPUs the cluster has."""
    return int(sum(node.get("GPU", 0) for node in nodes()))


def gpus_for(run: Run) -> int:
    """How many GPUs a step of a run takes: an equal share among the runs of its job that are at work, at most ``resources.max_gpus``.

    Asked again for each part of a step, so that a large language has more of them when the small ones are done.
    """
    share = math.ceil(gpus() / max(1, claims.working(run.turns)))
    return min(share, run.job.resources.max_gpus or share)


def nodes() -> list[dict[str, float]]:
    """What each node of the cluster has, by resource."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def hold_fits(job: Job, nodes: list[dict[str, float]]) -> None:
    """Raises ``RunError`` when a job would wait for ever for what these nodes do not have."""
    by_node = [int(node.get("GPU", 0)) for node in nodes]
    cpus = int(sum(node.get("CPU", 0) for node in nodes))
    fewest = _fewest_workers(job)
    if cpus < max(_CPUS_FOR_TASKS, 0 if sum(by_node) else fewest):
        needed = max(_CPUS_FOR_TASKS, fewest)
        raise RunError(f"resources: this job needs {needed} CPUs, and the cluster has {cpus}; submit it again if nodes are still joining")
    if sum(by_node):
        hold_fits_gpus(job, by_node)


def hold_fits_gpus(job: Job, by_node: list[int]) -> None:
    """Raises ``RunError`` when a job needs more GPUs than there are on these nodes."""
    resources = job.resources
    engines = 1 if resources.engine_replicas == "auto" else resources.engine_replicas
    embedders = 1 if resources.embedder_replicas == "auto" else resources.embedder_replicas
    room = sum(count // resources.tensor_parallel for count in by_node)
    for key, wanted, there, unit in (
        ("tensor_parallel", resources.tensor_parallel, max(by_node), "GPUs on one node"),
        ("engine_replicas", engines, room, f"engines of {resources.tensor_parallel} GPUs"),
        ("embedder_replicas", embedders, sum(by_node), "GPUs"),
        ("training_workers", _fewest_workers(job), sum(by_node), "GPUs"),
    ):
        if wanted > there:
            raise RunError(f"resources.{key}: this job needs {wanted} {unit}, and the cluster has {there}")


def _fewest_workers(job: Job) -> int:
    workers = job.resources.training_workers
    return 1 if workers == "auto" else workers if isinstance(workers, int) else workers[0]


def _stay_on_this_machine() -> None:
    """Keep Ray from looking for things elsewhere that a local cluster does not have.

    Its head asks the metadata servers of three cloud providers where it runs, even with usage statistics off, in plain HTTP,
    which goes to a proxy that is not there; what goes to an object store does not. Without a dashboard, Ray Train would look for that
    of whatever cluster it finds. And without the last one, whose name is misleading, its processes find each other under this
    machine's outside address, whose name is asked of a name server; with it under 127.0.0.1.
    """
    nowhere = "http://127.0.0.1:9"
    stores = [urlsplit(os.environ.get(name, "")).hostname for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")]
    direct = ["127.0.0.1", "localhost", os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), *stores]
    no_proxy = ",".join(filter(None, direct))
    os.environ.update(
        http_proxy=nowhere,
        no_proxy=no_proxy,
        NO_PROXY=no_proxy,
        RAY_API_SERVER_ADDRESS=nowhere,
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    )


def disconnect() -> None:
    """Leave the cluster, if this process has joined one; Ray that was started here ends."""
    if ray := sys.modules.get("ray"):
        ray.shutdown()
