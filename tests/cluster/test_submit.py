"""``submit``, ``cancel`` and ``logs`` against a Ray head, with a token."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from aloftrag import cli, job, submit
from tests.cluster.nodes import TOKEN, Nodes, cluster, free_port
from tests.end_to_end.driver import ended, environment, start


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with cluster(tmp_path_factory.mktemp("ray"), head_cpus=8) as found:
        found.wait_for_nodes(1)
        yield found


def command(arguments: list[str], token: str | None = TOKEN["RAY_AUTH_TOKEN"]) -> tuple[int, str]:
    process = start(arguments, environ=_with_token(token))
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def _with_token(token: str | None) -> dict[str, str]:
    # No home: Ray would find a token there. And another cluster's address, for what joins one.
    environ = {**environment(), "HOME": "/nonexistent", "RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    return {**environ, **({"RAY_AUTH_TOKEN": token} if token else {})}


def test_each_language_is_a_job_whose_end_and_output_can_be_seen(job_file: Any, tmp_path: Path, head: Nodes) -> None:
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "a text alone"}) + "\n")
    path = job_file(languages=["en", "de"])
    code, output = command(["submit", str(path), "--address", head.address, "--runs", str(tmp_path / "runs"), "--follow"])
    lines = [line.split("\t") for line in output.splitlines() if "\t" in line]
    ids = dict(lines[:2])
    assert set(ids) == {"en", "de"}
    assert ["en", "FAILED"] in lines, output
    assert ["de", "FAILED"] in lines
    assert any(line[:2] == ["en", "RUNNING"] and "load_texts" in line[2] for line in lines if len(line) == 3)
    assert code == 1
    code, logs = command(["logs", ids["de"], "--address", head.address])
    assert code == 0
    assert "at least 2 different texts are needed" in logs
    kept = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if TOKEN["RAY_AUTH_TOKEN"].encode() in path.read_bytes()]


def test_a_job_can_be_cancelled_and_one_that_does_not_exist_is_one_line(job_file: Any, tmp_path: Path, head: Nodes) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(50)))
    code, output = command(["submit", str(job_file()), "--address", head.address, "--runs", str(tmp_path / "runs")])
    assert code == 0
    (_, submission_id) = output.strip().split("\t")
    assert command(["cancel", submission_id, "--address", head.address])[0] == 0
    code, output = command(["cancel", submission_id, "--address", head.address])  # nothing to stop any more
    assert code == 0
    for name in ("cancel", "logs"):
        code, output = command([name, "raysubmit_none", "--address", head.address])
        assert code == 1
        (said,) = [line for line in output.splitlines() if line.startswith("aloftrag: ")]
        assert "raysubmit_none" in said


def test_a_job_that_can_never_fit_says_so_at_once_and_is_not_submitted(job_file: Any, tmp_path: Path, head: Nodes) -> None:
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "a text"}) + "\n")
    path = job_file(languages=["en", "de"], training={"examples_per_step": 9}, resources={"training_workers": 9})
    code, output = command(["submit", str(path), "--address", head.address, "--runs", str(tmp_path / "runs")])
    assert code == 1
    said = "aloftrag: resources: this job needs 9 CPUs, and the cluster has 8; submit it again if nodes are still joining"
    assert output.splitlines() == [said]


@pytest.mark.parametrize(("token", "said"), [(None, "the cluster wants a token"), ("a-wrong-token", "the cluster wants another token")])
def test_a_token_that_is_missing_or_wrong_is_one_line(job_file: Any, tmp_path: Path, head: Nodes, token: str | None, said: str) -> None:
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "a text"}) + "\n")
    code, output = command(["submit", str(job_file()), "--address", head.address], token)
    assert code == 1
    assert output.splitlines()[-1].startswith(f"aloftrag: --address {head.address}: {said}"), output
    assert "a-wrong-token" not in output


@pytest.mark.parametrize("mode", [{"RAY_AUTH_MODE": "token"}, {}], ids=["asked-for", "not-asked-for"])
def test_a_run_that_joins_without_the_token_is_one_line(job_file: Any, tmp_path: Path, head: Nodes, mode: dict[str, str]) -> None:
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "a text"}) + "\n")
    environ = {**_with_token(None), "RAY_ADDRESS": head.ray_address, **mode}
    output = ended(process := start(["run", str(job_file()), "--runs", str(tmp_path / "runs")], environ=environ), 120)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith(f"aloftrag: RAY_ADDRESS={head.ray_address}: "), output


@pytest.mark.parametrize("scheme", ["http://", "ray://", ""])
def test_an_address_where_nobody_answers_is_exit_code_1(
    job_file: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_API_SERVER_ADDRESS"):  # else this process keeps what submit sets
        monkeypatch.setenv(name, "disabled")
    address = f"{scheme}127.0.0.1:{free_port()}"
    assert cli.main(["submit", str(job_file()), "--address", address]) == 1
    assert f"--address {address}: " in capsys.readouterr().err


def test_what_is_sent_has_absolute_paths_and_is_otherwise_the_same_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    sections = {
        "name": "test",
        "languages": ["en"],
        "corpus": {"paths": ["a/{language}/*.md", "s3://bucket/b.jsonl", "/c.md"]},
        "models": {"llm": "model", "embedder": "BAAI/bge-m3"},
        "evaluation": {"gold": "gold.jsonl"},
        "training": {"preset": "small-model"},
    }
    given = job.Job.model_validate(sections)
    sent = submit.with_absolute_paths(given)
    assert sent.corpus.paths == [f"{tmp_path}/a/{{language}}/*.md", "s3://bucket/b.jsonl", "/c.md"]
    assert (sent.models.llm, sent.models.embedder) == (f"{tmp_path}/model", "BAAI/bge-m3")
    assert sent.evaluation.gold_paths == [f"{tmp_path}/gold.jsonl"]
    assert sent.training == given.training
    assert (sent.annotation, sent.negatives, sent.seed) == (given.annotation, given.negatives, given.seed)


def test_more_jobs_than_the_job_server_has_connections_are_followed(tmp_path: Path, head: Nodes) -> None:
    code = f"""
import pathlib
from aloftrag import submit
client = submit._client({head.address!r})
job = client.submit_job(entrypoint="echo begun; while [ ! -e {tmp_path}/seen ]; do sleep 1; done; printf 'the end'")
begun = set()
def tell(language, status, line):
    print(language, status, line, sep="\t")
    if line == "begun":
        begun.add(language)
    if len(begun) == 120:
        pathlib.Path("{tmp_path}/seen").touch()
print(submit.follow({head.address!r}, {{str(number): job for number in range(120)}}, tell))
"""
    process = subprocess.run(
        [sys.executable, "-c", code], env=_with_token(TOKEN["RAY_AUTH_TOKEN"]), capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines.pop() == str(dict.fromkeys(map(str, range(120)), "SUCCEEDED"))
    for number in range(120):
        of_one = [line.split("\t", 1)[1] for line in lines if line.startswith(f"{number}\t")]
        assert of_one.count("RUNNING\tbegun") == 1
        assert of_one[-2:] == ["RUNNING\tthe end", "SUCCEEDED\t"]


def test_a_line_is_told_once_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = iter(["", "en  load_te", "en  load_texts\nen  an", "en  load_texts\nen  annotate"])

    class Client:
        def get_job_status(self, submission_id: str) -> JobStatus:
            self.printed = next(prints)
            return JobStatus.SUCCEEDED if self.printed.endswith("annotate") else JobStatus.RUNNING

        def get_job_logs(self, submission_id: str) -> str:
            return self.printed

    client = Client()
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(submit, "_client", lambda address: client)
    monkeypatch.setattr(submit, "_LOOK_SECONDS", 0)
    assert submit.follow("http://head:8265", {"en": "raysubmit_1"}, lambda *said: told.append(said)) == {"en": "SUCCEEDED"}
    assert [line for _, _, line in told if line] == ["en  load_texts", "en  annotate"]


@pytest.mark.parametrize(("unanswered", "last"), [(2, ["SHIP"]), (3, [])])
def test_what_a_job_said_last_is_asked_for_again_where_its_node_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, unanswered: int, last: list[str]
) -> None:
    class Client:
        looks = 0

        def get_job_status(self, submission_id: str) -> JobStatus:
            return JobStatus.SUCCEEDED

        def get_job_logs(self, submission_id: str) -> str:
            self.looks += 1
            if self.looks <= unanswered:
                raise RuntimeError("the agent cannot be reached")
            return "SHIP\n"

    client = Client()
    told: list[tuple[str, str, str]] = []
    monkeypatch.setattr(submit, "_client", lambda address: client)
    monkeypatch.setattr(submit, "_LOOK_SECONDS", 0)
    assert submit.follow("http://head:8265", {"en": "raysubmit_1"}, lambda *said: told.append(said)) == {"en": "SUCCEEDED"}
    assert [line for _, _, line in told if line] == last
    assert told[-1] == ("en", "SUCCEEDED", "")


def test_ctrl_c_only_stops_following(job_file: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(address: str, ids: dict[str, str], tell: submit.Tell) -> dict[str, str]:
        assert ids == {"en": "raysubmit_1"}
        raise KeyboardInterrupt

    monkeypatch.setattr(submit, "submit", lambda *_: iter([("en", "raysubmit_1")]))
    monkeypatch.setattr(submit, "follow", interrupted)
    assert cli.main(["submit", str(job_file()), "--address", "http://head:8265", "--follow"]) == 0
    assert "the jobs go on" in capsys.readouterr().err


def test_on_a_terminal_a_language_has_one_line_which_ends_with_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with cli._table(["en", "de"]) as tell:
        tell("en", "PENDING", "")
        tell("en", "RUNNING", "en  annotate  256 of 300 rows")
        tell("de", "RUNNING", "de  load_texts  started")
        tell("en", "RUNNING", "test / en: SHIP: it cites better")
        tell("en", "RUNNING", "  report: runs/test/en/report.html")
        tell("en", "SUCCEEDED", "")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[-3:] == [
        ["language", "status", "last", "said"],
        ["en", "SUCCEEDED", "test", "/", "en:", "SHIP:", "it", "cites", "better"],
        ["de", "RUNNING", "load_texts", "started"],
    ]


def test_a_step_to_be_redone_is_redone_by_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self) -> None:
            self.entrypoints: list[str] = []

        def submit_job(self, entrypoint: str, **_: Any) -> str:
            self.entrypoints.append(entrypoint)
            return str(len(self.entrypoints))

    monkeypatch.setattr(submit, "_client", lambda address: client)
    monkeypatch.setattr(submit, "_nodes", lambda address: [])
    given = job.Job.model_validate({"name": "test", "languages": ["en", "de"], "corpus": {"paths": ["s3://bucket/{language}.jsonl"]}})
    monkeypatch.setattr(submit, "largest_first", lambda job: job.languages)
    for redo, said in (("annotate", " --redo annotate"), (None, "")):
        client = Client()
        assert [language for language, _ in submit.submit(given, "http://head:8265", "/runs", 8, redo)] == ["en", "de"]
        assert all(entrypoint.endswith(f"--runs /runs --parallel 8{said}") for entrypoint in client.entrypoints)


def test_the_largest_language_goes_first(tmp_path: Path) -> None:
    for language, size in (("en", 10), ("de", 1000), ("fr", 100)):
        (tmp_path / f"{language}.txt").write_text("x" * size)
    found = job.Job.model_validate(
        {"name": "test", "languages": ["en", "de", "fr"], "corpus": {"paths": [str(tmp_path / "{language}.txt")]}}
    )
    assert submit.largest_first(found) == ["de", "fr", "en"]


def test_documents_that_only_the_cluster_reaches_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(pattern: str) -> list[str]:
        raise PermissionError(f"Access denied: {pattern}")

    monkeypatch.setattr(submit, "matching", unreachable)
    found = job.Job.model_validate({"name": "test", "languages": ["en", "de"], "corpus": {"paths": ["s3://bucket/{language}.jsonl"]}})
    assert submit.largest_first(found) == ["en", "de"]
