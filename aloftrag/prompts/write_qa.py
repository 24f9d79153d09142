"""Step 2 (paper 3.2): a question that the text answers, and its answer.

    system     what to write
    user       ### Text ..., and for several questions per text: ### Part, which part of it to ask about
    assistant  ### Question ... ### Answer ...

or with the text first (``prompts.layout``);
or, with worked examples, plain text: ``Text: ...``, ``Question: ...``, ``Answer: ...``, one after the other; of several
questions per text, each is then shown the text's heading and its own part only.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from aloftrag.languages import NO_FINAL_QUESTION_MARK
from aloftrag.prompts.chat import ChatPrompt, PlainPrompt, Prompt
from aloftrag.prompts.headings import escaped, holds_one
from aloftrag.prompts.layout import Layout, conversation
from aloftrag.prompts.worked_examples import WorkedExample

INSTRUCTION = """You write questions about {language} texts from a collection of documents. Write one question in {language} that the \
text answers, and then its answer. Where a part of the text is named, the question is about that part. The question is read by somebody \
who cannot see the text: it names the person, place or thing that it is about. The answer is taken from the text and is short: a name, \
a number or a few words where they suffice."""
PREFILL = "### Question\n"
MAX_TOKENS = 512
_HEADED_REPLY = re.compile(r"\s*(\S.*?)\s*### Answer\s*(\S.*?)\s*", re.DOTALL)
_PLAIN_REPLY = re.compile(r"\s*(\S[^\n]*)\nAnswer:\s*(\S[^\n]*?)\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?…؟।])\s+|(?<=[。！？])|\n+")
_HEADING = re.compile(r"#{1,6}\s")


@dataclass(frozen=True)
class QuestionAnswer:
    """What was written about a text."""

    question: str
    answer: str


def prompt(text: str, part: str | None, language_code: str, language: str, examples: Sequence[WorkedExample], layout: Layout) -> Prompt:
    """What asks for a question about a text, or about ``part`` of it; ``language`` is the English name of ``language_code``."""
    question_mark = "" if language_code in NO_FINAL_QUESTION_MARK else "[?？؟;]"
    if examples:
        shown = "".join(
            f"Text: {example.text}\nQuestion: {example.question}\nAnswer: {example.answer}\n\n" for example in examples if example.question
        )
        task = "Write a question that the text answers, and its short answer. The question names what it is about."
        asked = text if part is None else f"{heading(text)}: {part}" if heading(text) else part
        asked = " ".join(asked.split())  # blank lines part the examples
        form = rf" [^\n]{{8,240}}{question_mark}\nAnswer: [^\n]{{1,200}}\n\n"
        return PlainPrompt(f"{task}\n\n{shown}Text: {asked}\nQuestion:", MAX_TOKENS, stop="\n\n", form=form)
    messages = conversation(layout, INSTRUCTION.format(language=language), text, f"### Part\n{escaped(part)}" if part else "")
    form = rf"[^\n]{{8,240}}{question_mark}\n### Answer\n[^\n]{{1,300}}"
    return ChatPrompt(messages, MAX_TOKENS, PREFILL, form)


def read(reply: str) -> QuestionAnswer | None:
    """The question and the answer in a reply, None when it lacks one.

    >>> read("Who built the mill?\\n### Answer\\nAda Moss")
    QuestionAnswer(question='Who built the mill?', answer='Ada Moss')
    >>> read(" Who built the mill?\\nAnswer: Ada Moss")
    QuestionAnswer(question='Who built the mill?', answer='Ada Moss')
    """
    found = _PLAIN_REPLY.fullmatch(reply) or _HEADED_REPLY.fullmatch(reply)
    return QuestionAnswer(found[1], found[2]) if found and not holds_one(found[1]) and not holds_one(found[2]) else None


def heading(text: str) -> str:
    """A text's Markdown heading, empty when it does not begin with one."""
    first, _, rest = text.strip().partition("\n")
    return first.lstrip("# ").strip() if _HEADING.match(first) and rest.strip() else ""


def normalised(question: str) -> str:
    """A question as it is compared with others: case, marks and spaces do not make it another one."""
    signs = unicodedata.normalize("NFKC", question).casefold()
    # Letters and digits, and the marks that are the vowels of Hindi, Bengali, Tamil or Thai.
    return " ".join("".join(sign if unicodedata.category(sign)[0] in "LMN" else " " for sign in signs).split())


def parts(text: str, count: int) -> list[str]:
    """At most ``count`` stretches of whole sentences, of about equal length, that make up the text."""
    sentences = [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip() and not _HEADING.match(sentence)]
    total = sum(map(len, sentences))
    groups: list[list[str]] = []
    seen = 0
    for sentence in sentences:
        # The middle of a sentence says to which of the equal stretches it belongs.
        group = min(count - 1, int((seen + len(sentence) / 2) * count / total))
        while len(groups) <= group:
            groups.append([])
        groups[group].append(sentence)
        seen += len(sentence)
    return [" ".join(group) for group in groups if group]
