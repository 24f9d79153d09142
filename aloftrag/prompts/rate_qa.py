"""Step 3 (paper 3.3, off by default): is the question answerable and fluent, is the answer right and fluent?

    system     what to judge, and the scale
    user       ### Text ... ### Question ... (### Answer ...)
    assistant  ### Rating, then a digit, ``one`` or ``ten``

or with the text first (``prompts.layout``). Asked without worked examples: a model that needs those cannot judge what it wrote.
"""

from aloftrag.prompts import rating
from aloftrag.prompts.chat import ChatPrompt
from aloftrag.prompts.layout import Layout, conversation
from aloftrag.prompts.write_qa import QuestionAnswer

QUESTION_INSTRUCTION = """You judge questions about {language} texts. Rate a question from 0 to 10: can it be answered from the text \
alone, is it clear to somebody who has not seen the text, and is it good {language}? {ask}"""
ANSWER_INSTRUCTION = """You judge answers to questions about {language} texts. Rate an answer from 0 to 10: is it right according to the \
text, does it answer the question, and is it good {language}? {ask}"""


def question_prompt(text: str, written: QuestionAnswer, language: str, layout: Layout) -> ChatPrompt:
    """What asks for a question's rating; ``language`` is an English name."""
    return _prompt(layout, QUESTION_INSTRUCTION, language, text, f"### Question\n{written.question}")


def answer_prompt(text: str, written: QuestionAnswer, language: str, layout: Layout) -> ChatPrompt:
    """What asks for an answer's rating; ``language`` is an English name."""
    return _prompt(layout, ANSWER_INSTRUCTION, language, text, f"### Question\n{written.question}\n\n### Answer\n{written.answer}")


def _prompt(layout: Layout, instruction: str, language: str, text: str, given: str) -> ChatPrompt:
    messages = conversation(layout, instruction.format(language=language, ask=rating.ASK), text, given)
    return ChatPrompt(messages, rating.MAX_TOKENS, rating.PREFILL, rating.FORM)
