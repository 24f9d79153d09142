"""Replies for the scripted engine, by what is asked."""

from collections.abc import Callable
from typing import Any

from aloftrag.prompts.chat import ChatPrompt

Answer = Callable[[str], str | None]  # from the user's turn; None is a reply cut at the limit

GOOD_QUESTION = "Which gate opens at noon?\n### Answer\nthe west gate"


def kind_of(prompt: Any) -> str:
    """Which of the annotator's calls a prompt is."""
    system = prompt.messages[0]["content"]
    beginnings = {
        "rate_text": "You judge English texts",
        "write_qa": "You write questions",
        "rate_question": "You judge questions",
        "rate_answer": "You judge answers",
    }
    (kind,) = [kind for kind, beginning in beginnings.items() if system.startswith(beginning)]
    return kind


def by_kind(asked: list[str] | None = None, **answers: Answer | str | None) -> Callable[[Any], str | None]:
    """A reply for each kind of call, a text or a function of the user's turn; ``asked`` collects the kinds."""

    def reply(prompt: ChatPrompt) -> str | None:
        name = kind_of(prompt)
        if asked is not None:
            asked.append(name)
        answer = answers[name]
        return answer(prompt.messages[1]["content"]) if callable(answer) else answer

    return reply
