"""Where the text stands in a conversation about it (design rule 4).

    instructions-first   system: the instruction; user: the text and what else is given (the paper's order)
    text-first           system: one line, the same in every conversation; user: the text, what else is given, the instruction

An engine with prefix caching computes a beginning once: that of all conversations about one text, or that of all texts.
"""

from collections.abc import Sequence
from typing import Literal

from aloftrag.prompts.chat import Message, message
from aloftrag.prompts.headings import escaped

Layout = Literal["instructions-first", "text-first"]

SYSTEM = "You are shown a text from a collection of documents, and after it a task about this text."


def conversation(layout: Layout, instruction: str, text: str, given: str = "") -> list[Message]:
    """The turns that ask for what ``instruction`` says about a text; ``given`` are further headed parts of what is given."""
    shown = f"### Text\n{escaped(text.strip())}\n\n{given}".strip()
    if layout == "text-first":
        return [message("system", SYSTEM), message("user", f"{shown}\n\n### Task\n{instruction}")]
    return [message("system", instruction), message("user", shown)]


def cheaper(text_tokens: float, instructions: Sequence[tuple[int, int]]) -> Layout:
    """The layout with fewer tokens to compute for a text of this length.

    ``instructions``: for each kind of call about a text, the tokens of its instruction and how many such calls there are. The text
    first is computed once instead of once for each kind; the instructions then are computed in every call, and not once for all.
    """
    saved = (len(instructions) - 1) * text_tokens
    return "text-first" if saved > sum(tokens * calls for tokens, calls in instructions) else "instructions-first"
