"""Step 3 (paper 3.3, off by default): is the question answerable and fluent, is the answer right and fluent?

    system     what to judge, and the scale
    user       ### Text ... ### Question ... (### Answer ...)
    assistant  ### Rating, then two digits

Asked without worked examples: a model that needs those cannot judge what it wrote.
"""

from aloftrag.prompts import rating
from aloftrag.prompts.chat import ChatPrompt, message
from aloftrag.prompts.write_qa import QuestionAnswer

QUESTION_SYSTEM = """You judge questions about {language} texts. Rate a question from 00 to 10: can it be answered from the text alone, \
is it clear to somebody who has not seen the text, and is it good {language}? Reply with two digits and nothing else."""
ANSWER_SYSTEM = """You judge answers to questions about {language} texts. Rate an answer from 00 to 10: is it right according to the \
text, does it answer the question, and is it good {language}? Reply with two digits and nothing else."""


def question_prompt(text: str, written: QuestionAnswer, language: str) -> ChatPrompt:
    """What asks for a question's rating; ``language`` is an English name."""
    return _prompt(QUESTION_SYSTEM, language, f"### Text\n{text}\n\n### Question\n{written.question}")


def answer_prompt(text: str, written: QuestionAnswer, language: str) -> ChatPrompt:
    """What asks for an answer's rating; ``language`` is an English name."""
    return _prompt(ANSWER_SYSTEM, language, f"### Text\n{text}\n\n### Question\n{written.question}\n\n### Answer\n{written.answer}")


def _prompt(system: str, language: str, given: str) -> ChatPrompt:
    return ChatPrompt(
        [message("system", system.format(language=language)), message("user", given)], rating.MAX_TOKENS, rating.PREFILL, rating.FORM
    )
