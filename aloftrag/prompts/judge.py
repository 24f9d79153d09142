"""Is an answer right? (``evaluation.judge``, paper 4.3)

system     what to decide
user       ### Text ... ### Question ... ### Accepted answers ... ### Answer ...
assistant  yes or no
"""

from collections.abc import Sequence

from aloftrag.prompts.chat import ChatPrompt, message
from aloftrag.prompts.headings import escaped

SYSTEM = """You judge answers. You are shown a text, a question about it, one or more accepted answers, and an answer that was given. \
Decide whether the given answer says the same as one of the accepted ones, or answers the question as rightly according to the text. \
Other words, another order and more detail are no fault; a contradiction, another fact or no answer is. Reply with yes or no, and nothing \
else."""
MAX_TOKENS = 8
_FORM = "(yes|no)"


def prompt(text: str | None, question: str, accepted: Sequence[str], answer: str) -> ChatPrompt:
    """What asks whether ``answer`` is right; ``text`` is the one that holds the answer, None where it is not known."""
    parts = {"Text": text, "Question": question, "Accepted answers": "\n".join(f"- {one}" for one in accepted), "Answer": answer}
    shown = "\n\n".join(f"### {heading}\n{escaped(part.strip())}" for heading, part in parts.items() if part is not None)
    return ChatPrompt([message("system", SYSTEM), message("user", shown)], MAX_TOKENS, form=_FORM)


def read(reply: str) -> bool | None:
    """Whether the answer is right; None when the reply does not say.

    >>> [read(reply) for reply in ("yes", " No.", "**Yes**", "perhaps")]
    [True, False, True, None]
    """
    return {"yes": True, "no": False}.get(reply.strip(" \n.*'\"").lower())
