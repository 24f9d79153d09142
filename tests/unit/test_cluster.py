"""What a run takes of a cluster, and jobs that do not fit on it."""

import urllib.request
from pathlib import Path
from typing import Any

import pytest

from aloftrag import claims, cluster
from aloftrag.artifacts import Run
from aloftrag.errors import RunError
from aloftrag.job import Job


def job(**resources: Any) -> Job:
    return Job.model_validate({"name": "test", "languages": ["en"], "corpus": {"paths": ["texts.jsonl"]}, "resources": resources})


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``has(4, 2)``: a cluster of nodes with so many GPUs; ``has(cpus=3)``: one without."""

    def set_cluster(*gpus: int, cpus: int = 64) -> None:
        nodes = [{"Alive": True, "Resources": {"GPU": count} if count else {}} for count in gpus]
        head = {"Alive": True, "Resources": {"CPU": cpus}}
        monkeypatch.setattr("ray.nodes", lambda: [head, *nodes, {"Alive": False, "Resources": {"GPU": 8, "CPU": 64}}])

    return set_cluster


@pytest.mark.parametrize(
    "resources",
    [
        {},
        {"tensor_parallel": 4, "engine_replicas": 1},
        {"tensor_parallel": 2, "engine_replicas": 3},
        {"embedder_replicas": 6, "training_workers": 1},
    ],
)
def test_what_fits(has: Any, resources: dict[str, Any]) -> None:
    has(4, 2)
    data = job(**resources)
    cluster.hold_fits(data, cluster.nodes())


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"tensor_parallel": 8}, "resources.tensor_parallel: this job needs 8 GPUs on one node, and the cluster has 4"),
        (
            {"tensor_parallel": 4, "engine_replicas": 2},
            "resources.engine_replicas: this job needs 2 engines of 4 GPUs, and the cluster has 1",
        ),
        ({"embedder_replicas": 7}, "resources.embedder_replicas: this job needs 7 GPUs, and the cluster has 6"),
    ],
)
def test_what_can_never_fit_is_said_with_what_there_is(has: Any, resources: dict[str, Any], said: str) -> None:
    has(4, 2, 0)
    with pytest.raises(RunError) as error:
        cluster.hold_fits(job(**resources), cluster.nodes())
    assert str(error.value) == said


@pytest.mark.parametrize("gpus", [(), (8,)])
def test_tasks_need_cpus(has: Any, gpus: tuple[int, ...]) -> None:
    has(*gpus, cpus=2)
    cluster.hold_fits(job(engine_replicas=2), cluster.nodes())
    has(*gpus, cpus=0)
    with pytest.raises(RunError, match="needs 2 CPUs, and the cluster has 0"):
        cluster.hold_fits(job(), cluster.nodes())


def test_runs_of_a_job_share_its_gpus(has: Any, tmp_path: Path) -> None:
    has(4, 4)
    run, limited = Run.of(job(), "en", tmp_path), Run.of(job(max_gpus=2), "en", tmp_path)
    assert (cluster.gpus_for(run), cluster.gpus_for(limited)) == (8, 2)
    with claims.hold(run.turns, at_most=8):
        assert cluster.gpus_for(run) == 8
        with claims.hold(run.turns, at_most=8), claims.hold(run.turns, at_most=8):
            assert (cluster.gpus_for(run), cluster.gpus_for(limited)) == (3, 2)
    has(0, 0)
    assert cluster.gpus_for(run) == 0


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_what_is_kept_on_this_machine_still_reaches_the_object_store(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "no_proxy", "NO_PROXY", "RAY_API_SERVER_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")  # and so as it was, in the end
    monkeypatch.setenv(variable, "wiki.example,10.0.0.1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.example:9000")
    cluster._stay_on_this_machine()
    assert urllib.request.getproxies_environment()["http"] == "http://127.0.0.1:9"
    for host in ("minio.example:9000", "wiki.example", "10.0.0.1", "127.0.0.1:8265", "localhost"):
        assert urllib.request.proxy_bypass_environment(host), host
    for host in ("169.254.169.254", "metadata.example"):
        assert not urllib.request.proxy_bypass_environment(host), host
