"""Invented texts with good questions, answers and ratings, shown as plain text to models that need to see the form."""

from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict

from aloftrag.errors import UsageError


class WorkedExample(BaseModel):
    """One invented text and what a good annotator makes of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    text_rating: int
    question: str | None = None  # None about a text that nobody would ask about: it is shown with its rating only
    answer: str | None = None


@cache
def _all() -> dict[str, list[WorkedExample]]:
    data = yaml.safe_load((files("aloftrag.prompts") / "worked_examples.yaml").read_text(encoding="utf-8"))
    return {code: [WorkedExample.model_validate(example) for example in examples] for code, examples in data.items()}


def worked_examples(language_code: str, count: int) -> list[WorkedExample]:
    """The first ``count`` examples in a language; ``UsageError`` when there are not as many."""
    found = _all().get(language_code, [])
    if count > len(found):
        raise UsageError(
            f"annotation.worked_examples: {count} were asked for, there are {len(found)} in {language_code!r}; "
            f"languages that have some: {', '.join(sorted(_all()))}"
        )
    return found[:count]
