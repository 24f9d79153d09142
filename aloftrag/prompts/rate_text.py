"""Step 1 (paper 3.1): how much useful information is in a text?

    system     what to judge, and the scale
    user       ### Text ...
    assistant  ### Rating, then two digits

or, with worked examples, plain text: ``Text: ...``, ``Rating: 08``, one after the other.
"""

from collections.abc import Sequence

from aloftrag.prompts import rating
from aloftrag.prompts.chat import ChatPrompt, PlainPrompt, Prompt, message
from aloftrag.prompts.worked_examples import WorkedExample

SYSTEM = """You judge {language} texts from a collection of documents. Rate how much useful information a text holds, \
from 00 to 10. 00: nothing to learn from it, such as a menu, a list of links or an empty phrase. 05: some information, but vague. \
10: many clear facts that somebody may want to look up. Reply with two digits and nothing else."""


def prompt(text: str, language: str, examples: Sequence[WorkedExample]) -> Prompt:
    """What asks for a text's rating; ``language`` is an English name."""
    if examples:
        shown = "".join(f"Text: {example.text}\nRating: {example.text_rating:02d}\n\n" for example in examples)
        task = "How much useful information is in the text, from 00 to 10?"
        return PlainPrompt(f"{task}\n\n{shown}Text: {text}\nRating:", rating.MAX_TOKENS, stop="\n", form=f" {rating.FORM}")
    messages = [message("system", SYSTEM.format(language=language)), message("user", f"### Text\n{text}")]
    return ChatPrompt(messages, rating.MAX_TOKENS, rating.PREFILL, rating.FORM)
