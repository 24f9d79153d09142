"""The real trainer on tiny models: packing, workers, strategies, restarts. Without Ray."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from aloftrag import artifacts
from aloftrag.job import Training
from aloftrag.prompts import rag
from aloftrag.prompts.chat import Message, prompt_ids
from aloftrag.training import checkpoints, loop
from aloftrag.training.batches import collate
from aloftrag.training.loss import loss_sums, weighted
from aloftrag.training.model import Cost, adapted_model, adapter_weights, learning_rate
from aloftrag.training.rows import ANSWER, CITATION, NONE, TrainingRow, training_row
from tests.steps.training_rows import random_rows, start, steps_of, trained, write_run

SETTINGS: dict[str, Any] = {
    "lora_r": 4,
    "lora_dropout": 0.0,
    "learning_rate": 0.02,
    "examples_per_step": 4,
    "max_tokens": 256,
    "checkpoint_minutes": 60,
    "citation_weight": 2.0,
}
WIDE = {**SETTINGS, "learning_rate": 0.002}


@pytest.fixture(scope="module")
def adapted(tiny_llm: Path) -> Any:
    """The tiny model with an adapter that changes what it says."""
    torch.manual_seed(0)
    model = adapted_model(tiny_llm, Training(lora_r=4, lora_dropout=0.0), None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model


def gradients(model: Any, batches: list[Any], citation_tokens: int, answer_tokens: int) -> tuple[float, list[torch.Tensor]]:
    """The loss of a step and its gradients."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        sums = loss_sums(model, batch)
        loss = weighted(sums.citation, sums.answer, citation_tokens, answer_tokens, 2.0)
        loss.backward()
        total += loss.item()
    return total, [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]


def test_packed_rows_have_the_loss_and_the_gradients_that_they_have_alone(adapted: Any) -> None:
    rows = random_rows(7)
    each = [loss_sums(adapted, collate([row], "by-length")) for row in rows]
    together = loss_sums(adapted, collate(rows, "packed"))
    assert together.citation.item() == pytest.approx(sum(part.citation.item() for part in each), rel=1e-4)
    assert together.answer.item() == pytest.approx(sum(part.answer.item() for part in each), rel=1e-4)
    assert together.citations_right == sum(part.citations_right for part in each)
    counts = sum(list(row.targets).count(CITATION) for row in rows), sum(list(row.targets).count(ANSWER) for row in rows)
    loss, wanted = gradients(adapted, [collate([row], "by-length") for row in rows], *counts)
    for batches in ([collate(rows, "packed")], [collate(rows, "by-length")], [collate(rows[:3], "packed"), collate(rows[3:], "packed")]):
        found, parts = gradients(adapted, batches, *counts)
        assert found == pytest.approx(loss, rel=1e-4)
        for part, one in zip(parts, wanted, strict=True):
            torch.testing.assert_close(part, one, rtol=1e-3, atol=1e-6)


def test_row_by_row_the_packed_loss_is_that_of_the_row_alone(adapted: Any) -> None:
    rows = random_rows(5, seed=1)
    silent = [TrainingRow(row.chat_id, row.token_ids, [NONE] * len(row)) for row in rows]
    for number, row in enumerate(rows):
        alone = loss_sums(adapted, collate([row], "by-length"))
        packed = loss_sums(adapted, collate([*silent[:number], row, *silent[number + 1 :]], "packed"))
        assert packed.citation.item() == pytest.approx(alone.citation.item(), rel=1e-4)
        assert packed.answer.item() == pytest.approx(alone.answer.item(), rel=1e-4)


def test_a_packed_row_does_not_see_the_others(adapted: Any) -> None:
    first, second = random_rows(2, seed=2)
    changed = TrainingRow("x", [(token + 1) % 1000 for token in first.token_ids], first.targets)

    def logits(*rows: TrainingRow) -> torch.Tensor:
        batch = collate(rows, "packed")
        with torch.no_grad():
            return adapted(input_ids=batch.token_ids, position_ids=batch.position_ids).logits[0]

    before, after = logits(first, second), logits(changed, second)
    assert not torch.allclose(before[: len(first)], after[: len(first)], atol=1e-3)
    torch.testing.assert_close(before[len(first) :], after[len(first) :], rtol=0, atol=1e-6)
    torch.testing.assert_close(before[len(first) :], logits(second), rtol=1e-4, atol=1e-5)


def test_the_weights_of_an_adapter_can_be_told_from_the_models_configuration(adapted: Any, tiny_llm: Path) -> None:
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert adapter_weights(tiny_llm, Training(lora_r=4)) == trained > 0


@pytest.fixture(scope="module")
def reference(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """An undisturbed run of ten steps with one worker, and its steps."""
    folder = write_run(tmp_path_factory.mktemp("reference") / "run", tiny_llm, random_rows(40), random_rows(6, seed=9), **SETTINGS)
    return folder, trained(folder)


def hold_losses(steps: list[dict[str, Any]], reference: list[dict[str, Any]], tolerance: float = 1e-3) -> None:
    assert [line["step"] for line in steps] == list(range(1, len(reference) + 1))
    for key in ("loss", "citation_loss", "answer_loss", "gradient_norm"):  # AdamW would hide a gradient that is twice too large
        assert [line[key] for line in steps] == pytest.approx([line[key] for line in reference], rel=tolerance)
    assert [line["target_tokens"] for line in steps] == [line["target_tokens"] for line in reference]


def test_the_loss_falls_and_each_step_is_written_down(reference: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, steps = reference
    assert len(steps) == 10
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert sum(line["tokens"] for line in steps) == sum(map(len, random_rows(40)))
    assert [line["learning_rate"] for line in steps] == [learning_rate(step, 10, 0.02) for step in range(10)]
    assert all(0 <= line["padding"] <= 0.05 and line["tokens_per_second"] > 0 and line["memory_mb"] > 0 for line in steps)
    validated = [line for line in artifacts.read_jsonl(folder / "metrics.jsonl") if "validation_loss" in line]
    assert [line["step"] for line in validated] == [2, 5, 8, 10]  # four times an epoch, half steps to the even one
    assert validated[-1]["validation_target_tokens"] == sum(len(row) - list(row.targets).count(NONE) for row in random_rows(6, seed=9))


@pytest.mark.parametrize(
    ("settings", "workers"),
    [({"batching": "packed"}, 1), ({}, 2), ({"batching": "packed", "max_tokens": 64}, 2)],
    ids=["packed", "two-workers", "two-workers-packed-small"],
)
def test_neither_batching_nor_the_number_of_workers_changes_the_losses(
    settings: dict[str, Any], workers: int, reference: tuple[Path, list[dict[str, Any]]], tiny_llm: Path, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", tiny_llm, random_rows(40), random_rows(6, seed=9), **{**SETTINGS, **settings})
    hold_losses(trained(folder, workers), reference[1])
    validations = [
        [line["validation_loss"] for line in artifacts.read_jsonl(run / "metrics.jsonl") if "validation_loss" in line]
        for run in (folder, reference[0])
    ]
    assert validations[0] == pytest.approx(validations[1], rel=1e-3)


@pytest.fixture(scope="module")
def outspoken_llm(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """A random two-layer model whose output layer, which no adapter changes, can tell tokens apart."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "outspoken"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.5)
        model.model.embed_tokens.weight.normal_(std=1.0)
    model.save_pretrained(folder, safe_serialization=True)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide_reference(outspoken_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run with a model whose matrices are large enough for ZeRO 3 to part them among the workers."""
    folder = write_run(tmp_path_factory.mktemp("wide") / "run", outspoken_llm, random_rows(40), random_rows(6, seed=9), **WIDE)
    trained(folder)
    return folder


@pytest.mark.faults
@pytest.mark.parametrize("strategy", ["deepspeed-zero2", "deepspeed-zero3"])
def test_deepspeed_trains_as_one_worker_does_and_goes_on_after_a_kill(
    strategy: str, wide_reference: Path, outspoken_llm: Path, tmp_path: Path
) -> None:
    settings = {**WIDE, "strategy": strategy, "checkpoint_minutes": 1e-6}
    folder = write_run(tmp_path / "run", outspoken_llm, random_rows(40), random_rows(6, seed=9), **settings)
    kill_after_step(folder, 4, workers=2)
    before = steps_of(folder)
    after = trained(folder, 2)
    assert after[:4] == before[:4]  # the same seconds: they were not done again
    hold_losses(after, steps_of(wide_reference))
    hold_same_adapter(last_adapter(folder), last_adapter(wide_reference))


def last_adapter(folder: Path) -> Path:
    newest = checkpoints.newest(folder / loop.CHECKPOINTS)
    assert newest is not None
    return newest


def hold_same_adapter(found: Path, wanted: Path) -> None:
    from safetensors.torch import load_file

    one, other = load_file(found / "adapter_model.safetensors"), load_file(wanted / "adapter_model.safetensors")
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0.05, atol=0.02)


def kill_after_step(folder: Path, step: int, workers: int = 1) -> None:
    """SIGKILL the last worker as soon as a checkpoint of this step is there, and end the others."""
    processes = start(folder, workers)
    deadline = time.monotonic() + 200
    while not any(int(path.name[5:]) >= step for path in (folder / loop.CHECKPOINTS).glob("step-*")):
        assert processes[-1].poll() is None, processes[-1].communicate()[0][-5000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes[-1].send_signal(signal.SIGKILL)
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.faults
def test_a_killed_worker_goes_on_from_its_checkpoint_as_if_it_had_not_been(tiny_llm: Path, tmp_path: Path) -> None:
    """With dropout, so that the random states count."""
    settings = {**SETTINGS, "lora_dropout": 0.3, "examples_per_step": 1, "checkpoint_minutes": 1e-6}
    whole, killed = (write_run(tmp_path / name, tiny_llm, random_rows(40), **settings) for name in ("whole", "killed"))
    reference = trained(whole)
    kill_after_step(killed, 5)
    before = steps_of(killed)
    assert 5 <= len(before) < 40
    after = trained(killed)
    hold_losses(after, reference, tolerance=1e-6)
    state = loop.last_state(killed)
    assert state is not None
    assert state["step"] == 40
    assert after[:5] == before[:5]  # the same seconds: they were not done again


def test_the_best_adapter_is_kept_where_the_last_is_worse(tiny_llm: Path, tmp_path: Path) -> None:
    """The validation rows are those of training with other targets: the better it knows the ones, the worse the others."""
    rows = random_rows(8)
    others = [TrainingRow(row.chat_id, [*list(row.token_ids)[:-8], *range(500, 508)], row.targets) for row in rows]
    folder = write_run(tmp_path / "run", tiny_llm, rows, others, **{**SETTINGS, "keep": "best", "epochs": 12, "learning_rate": 0.05})
    trained(folder)
    losses = {line["step"]: line["validation_loss"] for line in artifacts.read_jsonl(folder / "metrics.jsonl") if "validation_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert losses[best] < losses[max(losses)]
    kept = checkpoints.newest(folder / loop.BEST)
    again = adapted_model(tiny_llm, Training(**{key: SETTINGS[key] for key in ("lora_r", "lora_dropout")}), kept)
    sums = loss_sums(again.eval(), collate(others, "by-length"))
    counts = sum(list(row.targets).count(CITATION) for row in others), sum(list(row.targets).count(ANSWER) for row in others)
    assert weighted(sums.citation, sums.answer, *counts, 2.0).item() == pytest.approx(losses[best], rel=1e-3)


def test_what_a_step_costs_by_hand(tiny_llm: Path) -> None:
    model = adapted_model(tiny_llm, Training(lora_r=4), None)
    # Two layers of 64: q, k, v, o of 64 x 64, and gate, up, down of 64 x 128.
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert Cost.of(model) == Cost(weights, attention_width=2 * 64)
    assert Cost.of(model).flops([10, 30]) == 4 * weights * 40 + 6 * 128 * (100 + 900)
    for parameter in model.parameters():  # as ZeRO 3 leaves it
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    assert Cost.of(model).weights == weights


def test_auto_packs_where_flash_attention_keeps_packed_rows_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for attention, batching in (("flash_attention_2", "packed"), ("sdpa", "by-length")):
        monkeypatch.setattr(loop.model, "attention", lambda attention=attention: attention)
        assert loop.batching_here("auto") == batching
    assert loop.batching_here("packed") == "packed"


# Eight questions about texts that are told apart by a word, each at every position in turn.
THINGS = ["lift", "pump", "lamp", "boat", "oven", "clock", "mast", "gauge"]


def chat(number: int) -> tuple[list[Message], list[Message]]:
    """What is asked about a thing, and the whole conversation."""
    shown = [THINGS[(number + step) % 8] for step in (3, 5, 6)]
    place = number % 3
    shown[place] = THINGS[number]
    asked = rag.first_turns(
        [f"The {thing} is at gate {THINGS.index(thing)}." for thing in shown], f"Where is the {THINGS[number]}?", "English"
    )
    return asked, [*asked, rag.reply_turn([place + 1], f"gate {number}")]


def test_eight_rows_are_learned_by_heart_and_then_answered_with_the_right_citation(outspoken_llm: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(outspoken_llm)
    chats = [chat(number) for number in range(8)]
    rows = [training_row(tokenizer, f"{number}", whole) for number, (_, whole) in enumerate(chats)]
    settings = {**SETTINGS, "lora_r": 64, "lora_alpha": 64, "learning_rate": 0.0007, "epochs": 160, "max_tokens": 1024}
    folder = write_run(tmp_path / "run", outspoken_llm, rows, **settings)
    assert trained(folder)[-1]["loss"] < 0.1
    model = adapted_model(outspoken_llm, Training(), last_adapter(folder)).eval()
    for number, (asked, _) in enumerate(chats):
        prompt = prompt_ids(tokenizer, asked)
        with torch.no_grad():
            completion = model.generate(
                torch.tensor([prompt]), max_new_tokens=32, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
            )[0, len(prompt) :]
        reply = rag.read(tokenizer.decode(completion, skip_special_tokens=True), contexts=3)
        assert reply is not None
        assert reply.cited_positions == [number % 3 + 1]
        assert reply.answer.startswith("gate ")
