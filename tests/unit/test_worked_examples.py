import pytest

from aloftrag.errors import UsageError
from aloftrag.prompts import flaws, rate_text, write_qa
from aloftrag.prompts.worked_examples import WorkedExample, worked_examples

COUNT = 13
SHOWN = [(language, example) for language in ("en", "de") for example in worked_examples(language, COUNT)]
ASKED = [(language, example) for language, example in SHOWN if example.question]


def name(value: object) -> str:
    return value.question or value.text if isinstance(value, WorkedExample) else str(value)


@pytest.mark.parametrize(("language", "example"), ASKED, ids=name)
def test_an_example_shows_what_is_wanted(language: str, example: WorkedExample) -> None:
    assert example.question
    assert example.answer
    assert example.answer in example.text
    assert example.question.endswith("?")
    assert "\n" not in example.question + example.answer + example.text
    assert flaws.wrong_language(example.text, language) is False
    assert flaws.refers_to_text(example.question, language) is False
    assert not flaws.copies_instruction(example.question)


@pytest.mark.parametrize(("language", "example"), [shown for shown in SHOWN if shown not in ASKED], ids=name)
def test_an_example_without_a_question_shows_a_low_rating_only(language: str, example: WorkedExample) -> None:
    assert example.answer is None
    assert example.text_rating <= 2
    examples = worked_examples(language, COUNT)
    assert example.text in rate_text.prompt("A lift.", "English", examples, "instructions-first").text  # type: ignore[union-attr]
    asked = write_qa.prompt("A lift.", None, language, "English", examples, "instructions-first").text  # type: ignore[union-attr]
    assert example.text not in asked
    assert asked.count("Question:") == len([shown for shown in examples if shown.question]) + 1


def test_examples_show_texts_worth_using_and_others() -> None:
    for language in ("en", "de"):
        ratings = [example.text_rating for example in worked_examples(language, COUNT)]
        assert min(ratings) == 0
        assert max(ratings) == 10


def test_fewer_examples_are_the_first_of_more() -> None:
    assert worked_examples("en", 0) == []
    assert worked_examples("en", 3) == worked_examples("en", COUNT)[:3]


def test_none_is_needed_in_a_language_without_examples() -> None:
    assert worked_examples("fi", 0) == []


@pytest.mark.parametrize(("language", "count"), [("fi", 1), ("en", 1000)])
def test_more_examples_than_there_are_is_an_error_that_names_the_key(language: str, count: int) -> None:
    with pytest.raises(UsageError, match=rf"^annotation\.worked_examples: {count} .*'{language}'.*de, en$"):
        worked_examples(language, count)
