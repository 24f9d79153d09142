"""Planted secrets are found in nothing that is printed or saved."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aloftrag import cli, pipeline, report
from tests.steps import finished_run

PLANTED = {"options": "planted-in-options", "environment": "planted-in-environment", "address": "planted-in-address"}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sections of a job file with secrets; one of them is the value of an environment variable."""
    monkeypatch.setenv("HF_TOKEN", PLANTED["environment"])
    return {
        "engine": {"options": {"hf_token": PLANTED["options"], "download_dir": f"/cache/{PLANTED['environment']}"}},
        "evaluation": {"judge": f"http://user:{PLANTED['address']}@127.0.0.1:9/v1?api_key={PLANTED['address']}"},
    }


def hold_clean(folder: Path, *said: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for content in (*(path.read_bytes().decode(errors="replace") for path in files), *said):
        assert [secret for secret in PLANTED.values() if secret in content] == []


def test_job_and_manifests_hold_none_and_settings_can_still_be_told_apart(
    planted: dict[str, Any], new_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aloftrag.errors import RunError

    (tmp_path / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    monkeypatch.setattr(pipeline.STEPS["load_texts"], "make", lambda run, folder, work: folder.mkdir(parents=True) or {"rows": 1})
    monkeypatch.setattr(pipeline.STEPS["annotate"], "make", lambda run, folder, work: folder.mkdir(parents=True) or {"rows": 1})
    run = new_run(**planted)
    said: list[str] = []
    for step in ("load_texts", "annotate", "annotate"):
        pipeline.run_language(run, only=step, say=said.append)
    assert "done before" in said[-1]
    hold_clean(run.folder, *said)
    changed = new_run(**planted, annotation={"questions_per_text": 2})
    with pytest.raises(RunError, match=r"annotation.questions_per_text was 1 and is now 2\. Run") as error:
        pipeline.run_language(changed, only="annotate", say=said.append)
    hold_clean(run.folder, str(error.value))


def test_the_page_holds_none(planted: dict[str, Any], tmp_path: Path) -> None:
    run = finished_run.write(tmp_path)
    sections = {**run.job.model_dump(mode="json"), **planted}
    with_secrets = replace(run, job=type(run.job).model_validate(sections))
    with_secrets.write_job()
    report.write(with_secrets)
    assert "127.0.0.1:9/v1" in (run.folder / report.PAGE).read_text()
    hold_clean(run.folder)


def test_an_error_about_an_address_holds_none(
    planted: dict[str, Any], job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert cli.main(["run", str(job_file(**planted)), "--runs", str(tmp_path / "runs")]) == 2
    printed = capsys.readouterr()
    assert "http://***@127.0.0.1:9/v1?api_key=***" in printed.err
    assert [secret for secret in PLANTED.values() if secret in printed.err + printed.out] == []
