import pytest

from aloftrag.evaluation.baselines import most_words_position


@pytest.mark.parametrize(
    ("question", "texts", "language", "position"),
    [
        ("Who built the mill?", ["The mill is old.", "Ada built the mill.", "A boat."], "en", 2),
        ("Who built the mill?", ["the the the the", "A mill."], "en", 2),  # a word counts once, an article never
        ("Where is the mill?", ["A long text about where a mill is.", "Where is a mill"], "en", 2),  # as many words: the shorter
        ("Where?", ["no", "nothing"], "en", 1),  # none at all: the first of the shortest
        ("谁建了水车？", ["船在河上。", "艾达建了水车。"], "zh", 2),
    ],
)
def test_the_words_of_the_question_lead_to_a_text(question: str, texts: list[str], language: str, position: int) -> None:
    assert most_words_position(question, texts, language) == position
