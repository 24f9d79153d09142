"""Step 1 by the real engine and model: texts of different worth are told apart, and every rating can be given."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import pytest

from aloftrag.engine.port import Completion
from aloftrag.engine.vllm import VllmEngine, VllmSettings
from aloftrag.prompts import rate_text, rating
from aloftrag.prompts.chat import Prompt
from aloftrag.prompts.worked_examples import worked_examples
from tests.conftest import LLM

HANDBOOK = [path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parents[2] / "jobs/demo/en").glob("*.md"))[:20]]
WORTHLESS = [
    "Start | Search | Log in | Imprint",
    "Welcome, welcome, welcome! How nice of you to drop by.",
    "Click here. Or click here.",
    "Thank you for your visit. See you soon!",
    "All rights reserved.",
    "This page is empty.",
    "Menu\n- Start\n- Search\n- Log in",
    "Good morning, good evening and good night.",
]


async def ask_all(prompts: Sequence[Prompt]) -> list[Completion]:
    engine = VllmEngine(VllmSettings(LLM, 4096))
    try:
        return await asyncio.gather(*(engine.complete(prompt) for prompt in prompts))
    finally:
        engine.close()


def test_texts_of_different_worth_get_different_ratings_and_ten_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    examples = worked_examples("en", 13)
    always_ten = [example.model_copy(update={"text_rating": 10}) for example in examples]
    texts = [*HANDBOOK, *WORTHLESS]
    prompts = [rate_text.prompt(text, "English", shown, "instructions-first") for shown in (examples, always_ten) for text in texts]
    replies = asyncio.run(ask_all(prompts))

    plain = [rating.read(reply.text) for reply in replies]
    expected = [rating.expected(reply.first_tokens) for reply in replies]
    assert None not in plain
    good, poor = plain[: len(HANDBOOK)], plain[len(HANDBOOK) : len(texts)]
    assert mean(good) >= mean(poor) + 3  # type: ignore[type-var]
    assert mean(expected[: len(HANDBOOK)]) >= mean(expected[len(HANDBOOK) : len(texts)]) + 1  # type: ignore[type-var]
    assert plain[len(texts) :] == [10] * len(texts)
