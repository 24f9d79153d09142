"""Flaws of a generated question that can be seen without a model."""

import re
from functools import cache

from aloftrag.languages import CLOSE
from aloftrag.prompts import write_qa

# Ways to speak of the text that make no sense to a reader who does not see it.
REFERS_TO_TEXT = {
    "de": r"\b(de[rmns]|die(se[rmns]?)?|im|laut|obige[rmns]?) (obigen )?(text\w*|abschnitt\w*|absatz\w*|passage|dokument\w*|artikel\w*)\b",
    "en": r"\b(the|this|that|given|above) (above |given )?(text|passage|paragraph|document|article|excerpt|context)\b",
    "es": r"\b(el|este|del|al) (texto|pasaje|párrafo|documento|artículo)\b",
    "fr": r"\b(le|ce|du|au) (texte|passage|paragraphe|document)\b|\bl'article\b",
    "pt": r"\b(o|este|do|no|ao) (texto|trecho|parágrafo|documento|artigo)\b",
}
_COPIED_WORDS = 6


@cache
def _known_languages() -> frozenset[str]:
    import py3langid

    return frozenset(code for code, _ in py3langid.rank(""))


def wrong_language(text: str, language_code: str) -> bool | None:
    """Whether a text is in another language than the one given; None for a language that the identifier does not know."""
    import py3langid

    if language_code not in _known_languages():
        return None
    found = py3langid.classify(text)[0]
    return found != language_code and not any({found, language_code} <= close for close in CLOSE)


def refers_to_text(question: str, language_code: str) -> bool | None:
    """Whether a question speaks of "the text"; None for a language whose ways to say so we do not know."""
    pattern = REFERS_TO_TEXT.get(language_code)
    return None if pattern is None else re.search(pattern, question, re.IGNORECASE) is not None


def answer_repeats_question(question: str, answer: str) -> bool:
    """Whether the answer is a stretch of at least three words of its question: it says nothing."""
    words = write_qa.normalised(answer)
    return words.count(" ") >= 2 and f" {words} " in f" {write_qa.normalised(question)} "


def copies_instruction(question: str) -> bool:
    """Whether a question repeats six words in a row of the instruction to write one."""
    words = write_qa.normalised(question).split()
    instruction = f" {write_qa.normalised(write_qa.INSTRUCTION)} "
    runs = (" ".join(words[start : start + _COPIED_WORDS]) for start in range(len(words) - _COPIED_WORDS + 1))
    return any(f" {run} " in instruction for run in runs)
