"""Does another text answer a question too? (``negatives.verify``, the guard of step 4)

system     what to decide
user       ### Text ... ### Question ...
assistant  ### Verdict, then yes or no
"""

from aloftrag.prompts.chat import ChatPrompt
from aloftrag.prompts.layout import conversation

INSTRUCTION = """You are shown a {language} text and a question. Decide whether the text alone answers the question. A text about the same \
thing that lacks what is asked for does not answer it. Reply with yes or no, and nothing else."""
PREFILL = "### Verdict\n"
MAX_TOKENS = 8
_FORM = "(yes|no)"


def prompt(text: str, question: str, language: str) -> ChatPrompt:
    """What asks whether ``text`` answers ``question``; ``language`` is an English name."""
    messages = conversation("instructions-first", INSTRUCTION.format(language=language), text, f"### Question\n{question}")
    return ChatPrompt(messages, MAX_TOKENS, PREFILL, _FORM)


def read(reply: str) -> bool | None:
    """Whether the text answers; None when the reply does not say.

    >>> [read(reply) for reply in ("yes", " No.", "perhaps")]
    [True, False, None]
    """
    return {"yes": True, "no": False}.get(reply.strip().rstrip(".").lower())
