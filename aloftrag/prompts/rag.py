"""The RAG conversation (paper 3.5): what the adapter is trained on, and what base and adapter are asked.

system     how to reply
user       ### Text 1 ... ### Text n ... ### Question ...
assistant  ### Reference, the numbers of the texts; ### Answer, the answer
user       ### Question ... (a further question about the same texts)
...
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aloftrag.prompts.chat import Message, message
from aloftrag.prompts.headings import escaped, holds_one

SYSTEM = """You answer questions from numbered texts. First write the heading ### Reference and under it the numbers of the texts that \
hold the answer, separated by commas. Then write the heading ### Answer and under it the answer in {language}, as short as it can be."""
_MAY_BE_ABSENT = " If no text holds the answer, write none in place of the numbers, and in place of the answer that the texts do not say."
NONE = "none"
REFERENCE = "### Reference\n"
ANSWER = "\n\n### Answer\n"
_REPLY = re.compile(r"\s*### Reference\s*\[?\s*(none|\d+(?:\s*,\s*\d+)*)\s*\]?\s*### Answer\s*(\S.*)", re.DOTALL)
_BEGINNING = re.compile(r"\s*### Reference\s*(\[?\s*(\d[\d,\s]*|none\s*|n|no|non)?\]?\s*)(#.*)?", re.DOTALL)


@dataclass(frozen=True)
class Reply:
    """What a reply cites and answers."""

    cited_positions: list[int]  # none: no text holds the answer
    answer: str


def first_turns(texts: Sequence[str], question: str, language: str, *, may_be_absent: bool = False) -> list[Message]:
    """The conversation up to the first question; text number i stands at position i, from 1.

    ``may_be_absent``: the reply may say that no text holds the answer, which is then a thing to be learned.
    """
    numbered = "\n\n".join(f"### Text {position}\n{escaped(text.strip())}" for position, text in enumerate(texts, 1))
    asked = message("user", f"{numbered}\n\n{next_turn(question)['content']}")
    system = SYSTEM.format(language=language) + (_MAY_BE_ABSENT if may_be_absent else "")
    return [message("system", system), asked]


def next_turn(question: str) -> Message:
    """The user's turn that asks a further question about the same texts."""
    return message("user", f"### Question\n{escaped(question.strip())}")


def shown_texts(messages: Sequence[Message]) -> list[str]:
    """The texts of a conversation that ``first_turns`` began, as they stand in it, in the order of their positions."""
    numbered, _, _ = messages[1]["content"].rpartition("\n\n### Question\n")
    return re.split(r"(?:\A|\n\n)### Text \d+\n", numbered)[1:]


def reply_turn(cited_positions: Sequence[int], answer: str) -> Message:
    """The assistant's turn that is wanted; it cites ``none`` where no position is given."""
    cited = ", ".join(str(position) for position in sorted(cited_positions)) or NONE
    return message("assistant", f"{REFERENCE}{cited}{ANSWER}{escaped(answer.strip())}")


def reply_parts(content: str) -> tuple[str, str, str]:
    """A wanted reply cut into heading, cited numbers, and the rest."""
    assert content.startswith(REFERENCE), content
    cited, heading, answer = content.removeprefix(REFERENCE).partition(ANSWER)
    assert heading, content
    return REFERENCE, cited, heading + answer


def read(reply: str, contexts: int, *, may_be_absent: bool = False) -> Reply | None:
    """What a reply cites and answers; None unless it keeps the form, with different positions from 1 to ``contexts``, or none if it may.

    >>> read("### Reference\\n2\\n\\n### Answer\\nsix", contexts=4)
    Reply(cited_positions=[2], answer='six')
    """
    found = _REPLY.fullmatch(reply)
    if not found or holds_one(found[2]):
        return None
    if found[1] == NONE:
        return Reply([], found[2].strip()) if may_be_absent else None
    cited = [int(number) for number in found[1].split(",")]
    if len(set(cited)) < len(cited) or not all(1 <= position <= contexts for position in cited):
        return None
    return Reply(cited, found[2].strip())


def may_keep_form(beginning: str) -> bool:
    """Whether a reply that begins so can still keep the form.

    >>> [may_keep_form(beginning) for beginning in ("### Ref", "### Reference\\n2", "### Reference\\nText 2", "The lift")]
    [True, True, False, False]
    """
    return _BEGINNING.fullmatch(beginning) is not None or "### Reference".startswith(beginning.lstrip())


def reply_tokens(max_tokens: int) -> int:
    """The longest reply within conversations of ``max_tokens``: the paper's 2,048 of 20,000, in proportion."""
    return max_tokens // 10


def form(contexts: int, *, may_be_absent: bool = False) -> str:
    """The regular expression of the asked form: 1 to ``contexts`` different positions, ascending, then a line of answer."""
    beginnings = range(1, contexts + 1)
    lists = "|".join(str(first) + "".join(f"(, {later})?" for later in range(first + 1, contexts + 1)) for first in beginnings)
    lists += f"|{NONE}" if may_be_absent else ""
    return rf"### Reference\n({lists})\n\n### Answer\n[^\n]{{1,240}}"
