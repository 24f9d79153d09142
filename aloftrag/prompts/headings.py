"""The headings that part our prompts and replies. What stands between them is data, and must not look like one."""

import re

_OURS = re.compile(r"^([^\S\n]*)(###[^\S\n]*(?:Text|Part|Task|Question|Answer|Rating|Reference)\b)", re.MULTILINE)


def escaped(text: str) -> str:
    r"""A text in which a line that looks like one of our headings has a backslash in front, as Markdown does it.

    >>> escaped("Forms\n### Answer\nseven")
    'Forms\n\\### Answer\nseven'
    """
    return _OURS.sub(r"\1\\\2", text)


def holds_one(text: str) -> bool:
    """Whether a line looks like one of our headings."""
    return _OURS.search(text) is not None
