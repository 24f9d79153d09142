"""The commands. Exit codes: 0 done; 1 failed, with what to do next; 2 the command line or the job file is wrong."""

import argparse
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aloftrag import redact
from aloftrag.errors import RunError, UsageError, storage_failures_explained

if TYPE_CHECKING:
    from aloftrag.artifacts import Run
    from aloftrag.job import Job
    from aloftrag.submit import Tell

_CLEAR_LINE = "\r\033[K"
STEP_NAMES = ("load_texts", "annotate", "mine_negatives", "assemble_chats", "tune_adapter", "answer_questions", "score_answers")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        with storage_failures_explained():
            return options.command(options) or 0
    except UsageError as error:
        print(f"aloftrag: {redact.text(str(error))}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"aloftrag: {redact.text(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("aloftrag: interrupted; the same command, without --redo, goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aloftrag", description="Tune a language model on your documents, without labels (ALoFTRAG).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(command=function)
        return added

    def job_file(added: argparse.ArgumentParser) -> None:
        added.add_argument("job", metavar="JOB.yaml")
        added.add_argument("--set", action="append", metavar="a.b=c", default=[], help="a setting that wins over the job file (YAML)")
        added.add_argument("--language", action="append", metavar="CODE", help="only this language of the job; may be repeated")

    def redo(added: argparse.ArgumentParser) -> None:
        added.add_argument("--redo", choices=STEP_NAMES, metavar="STEP", help="discard this step and all after it first")

    run = command("run", _run, "run every language of a job to its report, resuming what is there")
    job_file(run)
    run.add_argument("--only", choices=STEP_NAMES, metavar="STEP", help="do this one step")
    redo(run)
    run.add_argument("--runs", default="runs", metavar="DIR", help="where the run folders are (default: runs)")
    run.add_argument("--parallel", type=_positive, metavar="N", help="wait for a turn while N other runs of this job are at work")

    submit = command("submit", _submit, "submit one Ray job per language")
    job_file(submit)
    submit.add_argument("--address", required=True, metavar="URL", help="the Ray head's job server, http://HEAD:8265")
    submit.add_argument("--runs", default="runs", metavar="DIR", help="where the run folders are, as the cluster sees it")
    redo(submit)
    submit.add_argument("--parallel", type=_positive, default=8, metavar="N", help="so many work at once, the rest wait (default: 8)")
    submit.add_argument("--follow", action="store_true", help="show how far the jobs are until all have ended; Ctrl-C only stops that")
    for name, function, about in (
        ("cancel", _cancel, "stop a submitted job"),
        ("logs", _logs, "what a submitted job has printed"),
    ):
        added = command(name, function, about)
        added.add_argument("id", metavar="ID")
        added.add_argument("--address", required=True, metavar="URL")

    plan = command("plan", _plan, "what a run would cost, from a sample; runs nothing")
    job_file(plan)
    plan.add_argument("--gpus", type=_positive, default=1, metavar="N", help="of the cluster that it would run on (default: 1)")
    plan.add_argument(
        "--rates", type=_run_folder, metavar="RUN", help="a finished run with the same models, for its rates; else they are assumed"
    )
    command("status", _status, "where a run stands").add_argument("run", metavar="RUN", type=_run_folder)
    command("report", _report, "write the page of runs, and print a table over them").add_argument(
        "run", metavar="RUN", type=_run_folder, nargs="+"
    )
    ask = command("ask", _ask, "answer a question from a run's texts with its adapter")
    ask.add_argument("run", metavar="RUN", type=_run_folder)
    ask.add_argument("question")
    check = command("judge-check", _judge_check, "how far a judge agrees with people")
    check.add_argument("file", metavar="FILE", help="a table of context, question, answer, reply, is_correct")
    check.add_argument("--judge", metavar="MODEL", help="as evaluation.judge (default: the default of models.llm)")
    return parser


def _run_folder(name: str) -> Path:
    from aloftrag import storage

    return storage.at(name)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, but got {text}")
    return number


def _judge_check(options: argparse.Namespace) -> None:
    from aloftrag.corpus import TABLES, check_columns, source_files
    from aloftrag.evaluation import judge
    from aloftrag.job import Models

    source_files([options.file], "judge-check", TABLES)
    check_columns(options.file, list(judge.CHECK_COLUMNS), "judge-check")
    rows, named = judge.read_labels(options.file), options.judge or Models().llm
    judge.find(named)
    with contextlib.redirect_stdout(sys.stderr):
        found = judge.check(rows, named)
    kappa = "not defined: only one verdict occurs" if found["kappa"] is None else f"{found['kappa']:.3f}"
    print(f"answers            {found['answers']} ({found['unusable']} without a verdict)")
    print(f"agreement          {found['agreement']:.1%}")
    print(f"Cohen's kappa      {kappa}")
    print(f"judge too lenient  {found['judge_too_lenient']}")
    print(f"judge too strict   {found['judge_too_strict']}")


def _run(options: argparse.Namespace) -> None:
    from aloftrag import cluster, submit
    from aloftrag.artifacts import Run
    from aloftrag.check import check

    if options.only and options.redo and options.only != options.redo:
        raise UsageError(f"--only {options.only} --redo {options.redo}: expected the same step, or one of the two")
    job, languages = _job(options)
    if os.environ.get("RAY_ADDRESS"):
        job = submit.with_absolute_paths(job)  # what runs on the cluster has other working folders than this process
    runs = [Run.of(job, language, options.runs) for language in languages]
    for run in runs:
        check(run.job)
    signal.signal(signal.SIGTERM, _exit)
    failed = []
    try:
        for run in runs:
            try:
                _run_language(run, job.languages, options)
            except RunError as error:
                if len(runs) == 1:
                    raise
                failed.append(run.job.language)
                _say(f"{run.job.language}  failed: {error}")
        if failed:
            raise RunError(f"{', '.join(failed)} failed, see why above; when that is mended, the same command goes on")
        if options.only is None:
            _hold_applied(runs)
    finally:
        if sys.stdout.isatty():
            print(_CLEAR_LINE, end="", flush=True)  # a line of progress, when a step ended badly
        cluster.disconnect()


def _run_language(run: "Run", languages: list[str], options: argparse.Namespace) -> None:
    from aloftrag import pipeline

    pipeline.run_language(
        run,
        only=options.only,
        redo=options.redo,
        say=_say,
        tell_progress=_say_in_place if sys.stdout.isatty() else _say,
        progress_seconds=5 if sys.stdout.isatty() else 60,
        at_work=_at_work(run, languages, options.parallel),
    )
    if options.only is None:
        _print_result(run.folder)


def _exit(signal_number: int, _: object) -> None:
    """End as by an error, so that what is held is given back; Ray's own handler, which a run gets when it joins, does the same."""
    sys.exit(128 + signal_number)


def _hold_applied(runs: list["Run"]) -> None:
    """Raises ``RunError`` naming the runs whose adapter changed nothing; they are finished, and their pages say so."""
    from aloftrag import artifacts

    not_applied = [str(run.folder) for run in runs if "not_applied" in artifacts.read_json(run.folder / "scores.json")]
    if not_applied:
        raise RunError(f"{', '.join(not_applied)}: the adapter was not applied, see why above; --redo tune_adapter makes another")


@contextlib.contextmanager
def _at_work(run: "Run", languages: list[str], parallel: int | None) -> Iterator[None]:
    """Joined to the cluster and, with ``--parallel N``, one of at most N runs of its job at work; turns go by the order of the languages.

    The process joins when its first turn has come: those that wait are on the head, where each would keep a driver's memory.
    """
    from aloftrag import claims, cluster

    with contextlib.ExitStack() as stack:
        if parallel is not None:
            order = f"{languages.index(run.job.language):05d}"
            stack.enter_context(claims.hold(run.turns, at_most=parallel, order=order, wait=True, say=_say))
        cluster.connect()
        cluster.hold_fits(run.job, cluster.nodes())
        yield


def _say(line: str) -> None:
    print(f"{_CLEAR_LINE if sys.stdout.isatty() else ''}{redact.text(line)}", flush=True)


def _say_in_place(line: str) -> None:
    """On a terminal, a line that the next one replaces."""
    width = shutil.get_terminal_size().columns
    print(f"{_CLEAR_LINE}{redact.text(line)[: width - 1]}", end="", flush=True)


def _submit(options: argparse.Namespace) -> int:
    from aloftrag import submit

    job, languages = _job(options)
    ids = {}
    job = job.model_copy(update={"languages": languages})
    submitted = submit.submit(job, options.address, options.runs, options.parallel, options.redo)
    try:
        for language, submission_id in submitted:
            ids[language] = submission_id
            print(f"{language}\t{submission_id}", flush=True)
    except KeyboardInterrupt:
        print(f"aloftrag: interrupted; submitted are those above: {len(ids)} of {len(languages)} languages", file=sys.stderr)
        return 130
    if not options.follow:
        return 0
    try:
        with _table(list(ids)) if sys.stdout.isatty() else contextlib.nullcontext(_tell) as tell:
            ended = submit.follow(options.address, ids, tell)
    except KeyboardInterrupt:
        print("no longer following; the jobs go on", file=sys.stderr)
        return 0
    return 0 if all(status == "SUCCEEDED" for status in ended.values()) else 1


def _tell(language: str, status: str, line: str) -> None:
    print("\t".join(part for part in (language, status, redact.text(line)) if part), flush=True)


@contextlib.contextmanager
def _table(languages: list[str]) -> Iterator["Tell"]:
    """On a terminal, what each job does, in place."""
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    rows = dict.fromkeys(languages, ("", ""))

    def tell(language: str, status: str, line: str) -> None:
        said = redact.text(line).removeprefix(language).strip()
        if not any(f": {verdict}: " in rows[language][1] for verdict in ("SHIP", "HOLD")):  # what it ends with
            said = said or rows[language][1]
        else:
            said = rows[language][1]
        rows[language] = (status, said)

    def table() -> Table:
        found = Table("language", "status", "last said", box=None, pad_edge=False)
        for language, (status, said) in rows.items():
            found.add_row(language, status, Text(said, no_wrap=True, overflow="ellipsis"))
        return found

    with Live(get_renderable=table, refresh_per_second=2):
        yield tell


def _cancel(options: argparse.Namespace) -> None:
    from aloftrag import submit

    submit.cancel(options.address, options.id)


def _logs(options: argparse.Namespace) -> None:
    from aloftrag import submit

    print(redact.text(submit.logs(options.address, options.id)), end="")


def _plan(options: argparse.Namespace) -> None:
    from aloftrag import plan
    from aloftrag.check import check
    from aloftrag.rates import ASSUMED, measured

    rates = measured(options.rates) if options.rates else ASSUMED
    job, languages = _job(options)
    for language in languages:
        one = job.for_language(language)
        check(one)
        print(f"{job.name} / {language}")
        steps = plan.plan(one, rates, options.gpus)
        print("\n".join([*plan.table(steps, rates, options.gpus), plan.search_line(one, steps, options.gpus)]))


def _status(options: argparse.Namespace) -> None:
    from aloftrag import pipeline

    if not (options.run / "job.json").is_file():
        raise RunError(f"{options.run}: no such run, or it has not begun; expected RUNS/JOB/LANGUAGE")
    for step, state in pipeline.status(options.run):
        print(f"{step:<18}{state}")


def _report(options: argparse.Namespace) -> None:
    from aloftrag import artifacts, report
    from aloftrag.ask import open_run
    from aloftrag.report import compare

    found = []
    for folder in options.run:
        run = open_run(folder)
        if not (folder / "scores.json").is_file():
            raise RunError(f"{folder}: not finished (no scores.json); run the job first")
        report.write(run)
        found.append(artifacts.read_json(folder / "scores.json"))
    print("\n".join(compare.table(found)))


def _ask(options: argparse.Namespace) -> None:
    from aloftrag.ask import ask, open_run

    with contextlib.redirect_stdout(sys.stderr):  # what libraries say is no part of the answer
        cited, answer = ask(open_run(options.run), options.question)
    print("\n".join(cited))
    print(answer)


def _job(options: argparse.Namespace) -> tuple["Job", list[str]]:
    """The job, and those of its languages that were asked for."""
    from aloftrag import job

    loaded = job.load(options.job, options.set)
    wanted = list(dict.fromkeys(options.language or loaded.languages))
    unknown = [language for language in wanted if language not in loaded.languages]
    if unknown:
        raise UsageError(f"--language {unknown[0]}: not a language of {options.job}; expected {', '.join(loaded.languages)}")
    return loaded, wanted


def _print_result(folder: Path) -> None:
    from aloftrag import artifacts, report, storage

    scores = artifacts.read_json(folder / "scores.json")
    baselines = scores["baselines"]
    print(f"\n{scores['job']} / {scores['language']}: {scores['verdict'].upper()}: {scores['why']}")
    for variant in ("base", "adapter"):
        found = scores[variant]
        print(f"  {variant:<8} exact citations {100 * found['citation_exact']:5.1f}%   answer F1 {100 * found['answer_f1']:5.1f}%")
    print(
        f"  for comparison: chance {100 * baselines['chance']:.1f}%, "
        f"the retriever's first hit (most_similar) {100 * baselines['most_similar']:.1f}%"
    )
    page = folder / report.PAGE
    print(f"  report: {os.path.relpath(page) if storage.is_local(page) else page}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
