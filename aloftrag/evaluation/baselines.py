"""What needs no model: which text one would cite by the words of the question alone."""

from collections.abc import Sequence

from aloftrag.evaluation.metrics import answer_tokens


def most_words_position(question: str, texts: Sequence[str], language: str) -> int:
    """The position, from 1, of the text that has the most different words of the question (characters where no spaces part words).

    Of several the shortest, in which they are the greatest share; of equally short ones the first.

    >>> most_words_position("Who built the mill?", ["The mill is old.", "Ada built the mill.", "A boat."], "en")
    2
    """
    asked = set(answer_tokens(question, language))
    words = [answer_tokens(text, language) for text in texts]
    return max(range(len(texts)), key=lambda place: (len(asked & set(words[place])), -len(words[place]), -place)) + 1
