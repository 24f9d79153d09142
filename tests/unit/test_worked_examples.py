import pytest

from aloftrag.errors import UsageError
from aloftrag.prompts import flaws
from aloftrag.prompts.worked_examples import WorkedExample, worked_examples

SHOWN = [(language, example) for language in ("en", "de") for example in worked_examples(language, 10)]


@pytest.mark.parametrize(("language", "example"), SHOWN, ids=lambda value: value.question if isinstance(value, WorkedExample) else value)
def test_an_example_shows_what_is_wanted(language: str, example: WorkedExample) -> None:
    assert example.answer in example.text
    assert example.question.endswith("?")
    assert "\n" not in example.question + example.answer + example.text
    assert 0 <= example.text_rating <= 10
    assert flaws.wrong_language(example.text, language) is False
    assert flaws.refers_to_text(example.question, language) is False
    assert not flaws.copies_instruction(example.question)


def test_examples_show_texts_worth_using_and_others() -> None:
    for language in ("en", "de"):
        ratings = [example.text_rating for example in worked_examples(language, 10)]
        assert min(ratings) < 8 <= max(ratings)


def test_fewer_examples_are_the_first_of_more() -> None:
    assert worked_examples("en", 0) == []
    assert worked_examples("en", 3) == worked_examples("en", 10)[:3]


def test_none_is_needed_in_a_language_without_examples() -> None:
    assert worked_examples("fi", 0) == []


@pytest.mark.parametrize(("language", "count"), [("fi", 1), ("en", 1000)])
def test_more_examples_than_there_are_is_an_error_that_names_the_key(language: str, count: int) -> None:
    with pytest.raises(UsageError, match=rf"^annotation\.worked_examples: {count} .*'{language}'.*de, en$"):
        worked_examples(language, count)
