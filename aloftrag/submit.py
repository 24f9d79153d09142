"""``aloftrag submit``, ``cancel`` and ``logs``: a job file's languages as Ray jobs, through Ray's job API.

A Ray job carries the job file and this code, so that what was tried here runs there; what it needs besides (Ray, vLLM, ...) comes
from the cluster's image. Its process on the cluster waits for its turn and for its run by itself (``aloftrag.claims``): nobody has to
stay connected.
"""

import contextlib
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

import aloftrag
from aloftrag import cluster, storage
from aloftrag.corpus import matching
from aloftrag.errors import RunError, outages
from aloftrag.job import Job

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_LOOK_SECONDS = 10
_LAST_LOOKS = 3  # for what a job printed that has ended, where its node does not answer
_MOST_NODES = 10_000  # that Ray lists in one answer
JOB_FILE = "job.yaml"

Tell = Callable[[str, str, str], None]


def submit(job: Job, address: str, runs: str, parallel: int, redo: str | None = None) -> Iterator[tuple[str, str]]:
    """Submit one Ray job per language, the largest first; yields each language with its submission id.

    At most ``parallel`` of them work at once; each discards the step ``redo`` and all after it first. Paths are made absolute: the
    cluster's machines must see them at the same place. Raises ``RunError`` before the first when the cluster could never hold the job.
    """
    client = _client(address)
    if nodes := _nodes(address):  # a head that has just started knows of none; the job asks again when its turn comes
        cluster.hold_fits(job, nodes)
    job = with_absolute_paths(job)
    job = job.model_copy(update={"languages": largest_first(job)})
    with tempfile.TemporaryDirectory() as folder, _explained(address):
        (Path(folder) / JOB_FILE).write_text(yaml.safe_dump(job.model_dump(mode="json"), allow_unicode=True), encoding="utf-8")
        for language in job.languages:
            arguments = ["--language", language, "--runs", _absolute(runs), "--parallel", str(parallel)]
            arguments += ["--redo", redo] if redo else []
            command = f'-m aloftrag.cli run "$JOB" {shlex.join(arguments)}'
            # This machine's Python where the head has it too (one image, one shared folder), else the head's own. It does not stay in
            # the folder that Ray makes: another node of the same machine may make it anew.
            python = f'PYTHON={shlex.quote(sys.executable)}; "$PYTHON" -c "import ray" || PYTHON=python'
            submission_id = client.submit_job(
                entrypoint=f'JOB="$PWD/{JOB_FILE}"; cd /; {python}; exec "$PYTHON" {command}',
                runtime_env={
                    "working_dir": folder,
                    "py_modules": [str(Path(aloftrag.__file__).parent)],
                    "env_vars": {"RAY_ADDRESS": "auto"},
                },
                metadata={"job": job.name, "language": language},
            )
            yield language, submission_id


def _nodes(address: str) -> list[dict[str, float]]:
    """What each node of the cluster has, as its head says."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        # Filtered here: what Ray's own filter leaves out it takes for lost.
        return [node.resources_total for node in list_nodes(address, limit=_MOST_NODES) if node.state == "ALIVE"]
    except RayStateApiException as error:
        raise RunError(f"--address {address}: the head does not say what its nodes have ({str(error).strip().splitlines()[0]})") from error


def with_absolute_paths(job: Job) -> Job:
    """The job with its relative paths made absolute; what has a scheme, and a model that is no path here, stays."""

    def model(name: str) -> str:
        return _absolute(name) if Path(name).exists() else name

    data = job.model_dump(exclude_unset=True)
    data["corpus"]["paths"] = [_absolute(path) for path in job.corpus.paths]
    data["models"] = {**data.get("models", {}), "llm": model(job.models.llm), "embedder": model(job.models.embedder)}
    gold, judge = [_absolute(path) for path in job.evaluation.gold_paths] or None, job.evaluation.judge
    data["evaluation"] = {**data.get("evaluation", {}), "gold": gold, "judge": model(judge) if judge else None}
    return Job.model_validate(data)


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def largest_first(job: Job) -> list[str]:
    """The languages by the size of their documents, as far as this machine sees them: what takes longest must not begin last."""

    def size(language: str) -> int:
        paths = job.for_language(language).corpus.paths
        try:
            return sum(storage.at(file).stat().st_size for path in paths for file in matching(path))
        except ModuleNotFoundError:  # of object stores, which only the cluster needs then
            return 0
        except outages():  # one that only the cluster reaches
            return 0

    return sorted(job.languages, key=size, reverse=True)


def follow(address: str, ids: dict[str, str], tell: Tell) -> dict[str, str]:
    """``tell(language, status, line)`` whenever a job's status changes or it prints, until all have ended; returns how each ended.

    Looks every ten seconds, and does not use Ray's tails: each holds one of the hundred connections that its job server has, for as long
    as the job prints nothing, also when nobody reads it any more; without one left the server is restarted.
    """
    client = _client(address)
    seen, told = dict.fromkeys(ids, ""), dict.fromkeys(ids, 0)
    looks = dict.fromkeys(ids, _LAST_LOOKS)
    going = list(ids)
    with _explained(address):
        while going:
            for language in list(going):
                status = client.get_job_status(ids[language])
                if status.value != seen[language] and not status.is_terminal():
                    tell(language, status.value, "")
                seen[language] = status.value
                printed = _printed(client, ids[language], whole=status.is_terminal())
                lines = printed or []
                for line in lines[told[language] :]:
                    tell(language, "RUNNING", line)
                told[language] = max(told[language], len(lines))
                looks[language] -= status.is_terminal()
                if status.is_terminal() and (printed is not None or not looks[language]):  # how it ended is in its last lines
                    going.remove(language)
                    if status.value != "SUCCEEDED" and not told[language]:  # it did not even begin
                        tell(language, status.value, client.get_job_info(ids[language]).message or "")
                    tell(language, status.value, "")
            time.sleep(_LOOK_SECONDS if going else 0)
    return seen


def _printed(client: "JobSubmissionClient", submission_id: str, whole: bool) -> list[str] | None:
    """The lines that a job has printed, without one that it has only begun unless that is the ``whole``.

    None when the server does not reach the job's node, at the moment or never again.
    """
    with contextlib.suppress(RuntimeError):
        text = client.get_job_logs(submission_id)
        return list(filter(str.strip, (text if whole else text[: text.rfind("\n") + 1]).splitlines()))
    return None


def cancel(address: str, submission_id: str) -> None:
    """Stop a submitted job."""
    with _explained(address):
        _client(address).stop_job(submission_id)


def logs(address: str, submission_id: str) -> str:
    """What a submitted job has printed."""
    with _explained(address):
        return _client(address).get_job_logs(submission_id)


def _client(address: str) -> "JobSubmissionClient":
    has_token = cluster.use_token()
    if not address.startswith(("http://", "https://")):
        raise RunError(f"--address {address}: expected the head's job server, http://HEAD:8265")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # RAY_ADDRESS, which is for what joins a cluster, would win over what Ray is told
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)  # what it uploads is no news
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        wanted = "another token" if has_token else "a token"
        raise RunError(f"--address {address}: the cluster wants {wanted}; put it in RAY_AUTH_TOKEN or ~/.ray/auth_token") from error
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:  # nobody, or a server of something else
        raise RunError(f"--address {address}: no Ray job server answers there; expected the head's dashboard, http://HEAD:8265") from error


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """What the job server refuses, and that it answers no more, as a ``RunError`` of one line."""
    from requests import RequestException

    try:
        yield
    except RequestException as error:
        raise RunError(f"--address {address}: the job server answers no more; submitted jobs go on without it") from error
    except RuntimeError as error:  # Ray's client has no other class for what the server says
        if "Request failed with status code" not in str(error):
            raise
        raise RunError(f"--address {address}: {str(error).strip().splitlines()[-1]}") from error
