"""``aloftrag submit``, ``cancel`` and ``logs``: a job file's languages as Ray jobs, through Ray's job API."""

import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aloftrag.errors import RunError
from aloftrag.job import Job

if TYPE_CHECKING:
    from ray.job_submission import JobStatus, JobSubmissionClient

_FOLLOW_SECONDS = 2


def submit(job_file: Path, job: Job, address: str, arguments: list[str]) -> dict[str, str]:
    """Submit one Ray job per language; returns the submission id of each language.

    The jobs work in this directory, so the head must see it at the same place.

    ``arguments`` are further ones of ``aloftrag run``.
    """
    client = _client(address)
    here = shlex.quote(str(Path.cwd()))
    ids = {}
    for language in job.languages:
        command = shlex.join(["-m", "aloftrag.cli", "run", str(job_file), "--language", language, *arguments])
        ids[language] = client.submit_job(
            # This machine's Python where the head has it too (one image, one shared folder), else the head's own.
            entrypoint=f"cd {here}; PYTHON={shlex.quote(sys.executable)}; [ -x $PYTHON ] || PYTHON=python; exec $PYTHON {command}",
            runtime_env={"env_vars": {"RAY_ADDRESS": "auto"}},
            metadata={"job": job.name, "language": language},
        )
    return ids


def follow(address: str, ids: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(language, status) whenever a job's status changes, until all have ended."""
    from requests import ConnectionError as NoConnection

    client = _client(address)
    seen: dict[str, JobStatus] = {}
    while not all(language in seen and seen[language].is_terminal() for language in ids):
        for language, submission_id in ids.items():
            try:
                status = client.get_job_status(submission_id)
            except NoConnection as error:
                raise RunError(f"--address {address}: the job server answers no more; the jobs may go on without it") from error
            if seen.get(language) != status:
                seen[language] = status
                yield language, status.value
        time.sleep(_FOLLOW_SECONDS)


def cancel(address: str, submission_id: str) -> None:
    """Stop a submitted job."""
    _client(address).stop_job(submission_id)


def logs(address: str, submission_id: str) -> str:
    """What a submitted job has printed."""
    return _client(address).get_job_logs(submission_id)


def _client(address: str) -> "JobSubmissionClient":
    if _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads the token itself, but only when told so before it is imported
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise RunError(f"--address {address}: the cluster wants a token; put it in RAY_AUTH_TOKEN or ~/.ray/auth_token") from error
    except ConnectionError as error:
        raise RunError(f"--address {address}: no Ray job server answers there; expected the head's dashboard, http://HEAD:8265") from error


def _has_token() -> bool:
    """Whether a token is where Ray looks for one."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token")
    return "RAY_AUTH_TOKEN" in os.environ or Path(path).is_file()
