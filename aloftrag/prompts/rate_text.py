"""Step 1 (paper 3.1): how much useful information is in a text?

    system     what to judge, and the scale
    user       ### Text ...
    assistant  ### Rating, then a digit, ``one`` or ``ten``

or with the text first (``prompts.layout``); or, with worked examples, plain text: ``Text: ...``, ``Rating :8``, one after the other.
"""

from collections.abc import Sequence

from aloftrag.prompts import rating
from aloftrag.prompts.chat import ChatPrompt, PlainPrompt, Prompt
from aloftrag.prompts.layout import Layout, conversation
from aloftrag.prompts.worked_examples import WorkedExample

INSTRUCTION = """You judge {language} texts from a collection of documents. Rate how much useful information a text holds, \
from 0 to 10. 0: nothing to learn from it, such as a menu, a list of links or an empty phrase. 5: some information, but vague. \
10: many clear facts that somebody may want to look up. {ask}"""


def prompt(text: str, language: str, examples: Sequence[WorkedExample], layout: Layout) -> Prompt:
    """What asks for a text's rating; ``language`` is an English name."""
    if examples:
        # Tokenisers join a space, or a lone sign, with the word after it, never with a digit; " :" they join with neither.
        shown = "".join(f"Text: {example.text}\nRating :{rating.WRITTEN[example.text_rating]}\n\n" for example in examples)
        task = "How much useful information is in the text, from 0 to ten?"
        beginning = f"{task}\n\n{shown}Text: {' '.join(text.split())}\nRating :"  # blank lines part the examples
        return PlainPrompt(beginning, rating.MAX_TOKENS, stop="\n", form=rating.FORM, alternatives=rating.ALTERNATIVES)
    messages = conversation(layout, INSTRUCTION.format(language=language, ask=rating.ASK), text)
    return ChatPrompt(messages, rating.MAX_TOKENS, rating.PREFILL, rating.FORM, rating.ALTERNATIVES)
