"""What an adapter's folder says of itself: its base model, what it was made from, how good it is, how to serve it."""

from typing import Any

from aloftrag import artifacts, languages, storage
from aloftrag.artifacts import Run
from aloftrag.engine.vllm import holding_rank
from aloftrag.training.base_model import base_model

CARD = "README.md"


def tell_scores(run: Run) -> None:
    """Write the card of a finished run again, which was made before there were scores."""
    adapter = artifacts.manifest(run.artifact("adapter"))
    assert adapter is not None
    write(run, adapter["counts"], artifacts.read_json(run.folder / "scores.json"))


def write(run: Run, counts: dict[str, Any], scores: dict[str, Any] | None = None) -> None:
    """Write the card; without ``scores`` (the content of scores.json) it says that there are none yet."""
    job, adapter = run.job, run.artifact("adapter")
    chats = artifacts.manifest(run.artifact("chats"))
    assert chats is not None
    training, expects = job.training, "first_turns"
    if job.may_be_absent:
        expects += ", with may_be_absent"
    lines = [
        "---",
        f"base_model: {base_model(job)}",
        "library_name: peft",
        f"language: {job.language}",
        "tags: [lora, rag, aloftrag]",
        "---",
        f"# {job.name} / {job.language}",
        "",
        f"A LoRA adapter that answers questions in {languages.english_name(job.language)} from up to {job.contexts} numbered texts,",
        "and names the texts that hold the answer. Made by aloftrag after ALoFTRAG (arXiv 2501.11929), without labels.",
        "",
        f"- Base model: `{base_model(job)}`",
        f"- Made from: {counts['chats']:,} chats, fingerprint `{chats['fingerprint']}`",
        f"- Trained: {counts['steps']:,} steps of {training.examples_per_step} chats, {counts['tokens']:,} tokens, "
        f"last loss {counts['last_loss']}; LoRA r {training.lora_r}, alpha {training.lora_alpha}, learning rate {training.learning_rate:g}",
        f"- {_scores_line(scores)}",
        "",
        "## Serve it",
        "",
        "```bash",
        f"vllm serve {base_model(job)} --enable-lora --max-lora-rank {holding_rank(training.lora_r)} \\",
        f"    --lora-modules {job.name}=ADAPTER_FOLDER --generation-config vllm",
        "```",
        "",
        "Ask it with temperature 0, as it was when it was scored.",
        f"It expects the conversation that aloftrag/prompts/rag.py writes (`{expects}`): texts under `### Text 1` and so on, then",
        "`### Question`; it replies with `### Reference` and the numbers of the texts, then `### Answer`."
        + (" Where no text holds the answer it cites `none`." if job.may_be_absent else ""),
        "",
    ]
    card, path = "\n".join(lines), adapter / CARD
    if path.is_file() and path.read_text(encoding="utf-8") == card:
        return
    storage.write(path, card.encode())


def _scores_line(scores: dict[str, Any] | None) -> str:
    if scores is None:
        return "Scores: not evaluated yet"
    base, adapter = (scores[variant]["citation_exact"] for variant in ("base", "adapter"))
    return (
        f"Scores on {scores['questions']} questions ({scores['questions_from']}): exact citations {adapter:.1%}, the base {base:.1%}; "
        f"verdict {scores['verdict']}: {scores['why']}"
    )
