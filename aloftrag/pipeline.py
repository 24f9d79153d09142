"""The steps in order: run what is not finished, resume what was begun, skip what is done.

step              makes         paper
load_texts        texts         -
annotate          annotations   3.1 - 3.3
mine_negatives    negatives     3.4
assemble_chats    chats         3.5
tune_adapter      adapter       3.5
answer_questions  answers       4.3
score_answers     scores.json   4.3
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from aloftrag import artifacts, claims, cluster, progress, report, storage
from aloftrag.artifacts import Run
from aloftrag.errors import RunError
from aloftrag.steps import (
    annotate,
    answer_questions,
    assemble_chats,
    load_texts,
    mine_negatives,
    score_answers,
    tune_adapter,
)
from aloftrag.training import model_card

STEPS = {
    module.__name__.rpartition(".")[2]: module
    for module in (load_texts, annotate, mine_negatives, assemble_chats, tune_adapter, answer_questions, score_answers)
}

Say = Callable[[str], None]


def run_language(
    run: Run,
    *,
    only: str | None = None,
    redo: str | None = None,
    say: Say = print,
    tell_progress: Say = print,
    progress_seconds: float = 60,
    at_work: AbstractContextManager[None] | None = None,
) -> None:
    """Bring one run to its report, doing only what is missing.

    ``redo`` discards a step and all after it first; ``only`` does one step, and raises ``RunError`` naming the step before it
    that is not finished. ``tell_progress`` gets a line every ``progress_seconds`` while a step runs. ``at_work``: entered
    before the steps, which may take a wait, and held while they run. Raises ``RunError`` when another process works on this run.
    """
    with claims.hold(run.claims, say=say), at_work or nullcontext():
        _run_steps(run, only, redo, say, tell_progress, progress_seconds)


def _run_steps(run: Run, only: str | None, redo: str | None, say: Say, tell_progress: Say, progress_seconds: float) -> None:
    fingerprints: dict[str, str] = {}
    redone = False
    for name, step in STEPS.items():
        if name == redo:
            redone = True
            _discard(run, from_step=redo)
        if step is annotate:
            run = annotate.with_layout(run)
        if step is mine_negatives:
            run = mine_negatives.with_index(run)
        settings = _settings(run, name, fingerprints)
        fingerprints[step.MAKES] = artifacts.fingerprint(settings)
        if artifacts.is_finished(run.artifact(step.MAKES), settings, name):
            say(f"{run.job.language}  {name:<16} done before  {_shown(artifacts.manifest(run.artifact(step.MAKES)))}")
        elif only in (None, name) and not redone and _reuse(run, name, fingerprints[step.MAKES]):
            say(f"{run.job.language}  {name:<16} reused       {_shown(artifacts.manifest(run.artifact(step.MAKES)))}")
        elif only in (None, name):
            _make(run, name, settings, say, tell_progress, progress_seconds)
        else:
            raise RunError(f"--only {only}: {name} is not finished; run it first with --only {name}, or the whole job without --only")
        if name == only:
            return
    model_card.tell_scores(run)
    report.write(run)
    storage.remove(run.folder / ".work")


def _settings(run: Run, name: str, fingerprints: dict[str, str]) -> dict[str, Any]:
    """What a step's fingerprint is made of: its version, its settings, and the fingerprints of what it needs."""
    step = STEPS[name]
    upstream = {f"{artifact} (fingerprint)": fingerprints[artifact] for artifact in step.NEEDS}
    return {f"{name} (version)": step.VERSION, **_flat(step.settings(run)), **upstream}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key, so that the one that differs can be named."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _reuse(run: Run, name: str, fingerprint: str) -> bool:
    """Take a step's artifacts from a run beside this one (another job, the same language) that has made the same, if there is one.

    The same means of the same settings, and from the very artifacts that this run has. Scores are of a run by its name, and quickly
    made.
    """
    step = STEPS[name]
    if step is score_answers or run.work(name, fingerprint).is_dir():  # begun here: gone on with here
        return False
    made_from = _made_from(run, name)
    for beside in _runs_beside(run):
        made = artifacts.manifest(beside / step.MAKES)
        if made is None or made["fingerprint"] != fingerprint or made.get("made_from") != made_from:
            continue
        _remove_unfinished(run, name)
        try:
            for artifact in (*step.BESIDE, step.MAKES):
                artifacts.link(beside / artifact, run.artifact(artifact))
            unchanged = artifacts.manifest(beside / step.MAKES) == made
        except OSError:
            unchanged = False
        if not unchanged:  # it is being made anew there, which removes the manifest first
            _remove_unfinished(run, name)
            continue
        run.write_job()
        if step is tune_adapter:
            model_card.write(run, made["counts"])
        reused_from = made.get("reused_from", f"{beside.parent.name}/{beside.name}")
        artifacts.write_json(run.artifact(step.MAKES) / artifacts.MANIFEST, {**made, "reused_from": reused_from})
        return True
    return False


def _runs_beside(run: Run) -> list[Path]:
    """The folders of the other jobs' runs in the same language, those that have come furthest first."""
    others = [folder for folder in run.folder.parents[1].glob(f"*/{run.job.language}") if folder != run.folder]
    finished = {folder: sum((folder / step.MAKES / artifacts.MANIFEST).is_file() for step in STEPS.values()) for folder in others}
    return sorted(others, key=lambda folder: (-finished[folder], folder))


def _made_from(run: Run, name: str) -> dict[str, str]:
    """The ids of the artifacts that a step makes its own from; those of a version without ids have none."""
    return {needed: artifacts.id_of(run.artifact(needed)) for needed in STEPS[name].NEEDS}


def _make(run: Run, name: str, settings: dict[str, Any], say: Say, tell_progress: Say, progress_seconds: float) -> None:
    step = STEPS[name]
    folder = run.artifact(step.MAKES)
    work = run.work(name, artifacts.fingerprint(settings))
    if not work.is_dir():  # what lies there unfinished was made with other settings
        _remove_unfinished(run, name)
    run.write_job()
    say(f"{run.job.language}  {name:<16} started")
    clock = _Clock(work)
    clock.note()

    def look() -> None:
        clock.note()
        if (found := progress.of_work(work)) is not None:
            tell_progress(f"{run.job.language}  {name:<16} {found}")

    with progress.repeatedly(look, progress_seconds):
        counts = step.make(run, folder, work)
    artifacts.finish(folder, name, settings, counts, clock.seconds(), _gpus(), _made_from(run, name))
    storage.remove(work)
    say(f"{run.job.language}  {name:<16} done         {_shown(artifacts.manifest(folder))}")


class _Clock:
    """The time that a step takes, over all its starts; of one that was killed, up to the last note."""

    def __init__(self, work: Path):
        self._path = work / "seconds.json"
        self._before = artifacts.read_json(self._path) if self._path.is_file() else 0.0
        self._started = time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def note(self) -> None:
        artifacts.write_json(self._path, self.seconds())


def _gpus() -> int:
    import ray

    return cluster.gpus() if ray.is_initialized() else 0


def _remove_unfinished(run: Run, name: str) -> None:
    step = STEPS[name]
    for artifact in (step.MAKES, *step.BESIDE):
        storage.remove(run.artifact(artifact))
    for work in (run.folder / ".work").glob(f"{name}-*"):
        storage.remove(work)


def _discard(run: Run, from_step: str) -> None:
    names = list(STEPS)
    for name in reversed(names[names.index(from_step) :]):  # the last first: what is left is always whole
        folder = run.artifact(STEPS[name].MAKES)
        storage.remove_file(folder / artifacts.MANIFEST)
        _remove_unfinished(run, name)
    for result in (score_answers.SCORES, report.PAGE):
        storage.remove_file(run.folder / result)


def _shown(manifest: dict[str, Any] | None) -> str:
    """One line of a manifest: how long the step took, and its counts."""
    assert manifest is not None
    counts = ", ".join(f"{key.replace('_', ' ')} {_shown_value(value)}" for key, value in manifest["counts"].items())
    reused = f" (from {manifest['reused_from']})" if "reused_from" in manifest else ""
    return f"{manifest['seconds']:6.0f} s  {counts}{reused}"


def _shown_value(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {count}" for key, count in value.items()) + ")"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def status(folder: Path) -> list[tuple[str, str]]:
    """Where a run stands: (step, state) for each step."""
    states = []
    for name, step in STEPS.items():
        manifest = artifacts.manifest(folder / step.MAKES)
        if manifest:
            states.append((name, f"done  {_shown(manifest)}"))
        elif works := list((folder / ".work").glob(f"{name}-*")):
            states.append((name, f"begun {progress.of_work(works[0]) or ''}"))
        else:
            states.append((name, "-"))
    return states
