import pytest

from aloftrag import languages
from aloftrag.errors import UsageError
from aloftrag.prompts import no_answer


def test_each_language_has_a_statement_of_its_own_that_is_one_short_line() -> None:
    known = [code for code in languages._names() if len(code) == 2]
    said = {}
    for code in known:
        try:
            said[code] = no_answer.statement(code)
        except UsageError:
            continue
    assert {"ar", "de", "el", "en", "es", "hi", "ja", "ko", "pt", "ro", "ru", "sw", "th", "tr", "vi", "zh"} <= said.keys()
    assert all(text == text.strip() and "\n" not in text and len(text) < 60 for text in said.values())
    assert len(set(said.values())) == len(said) - 1  # Norwegian has two codes


def test_a_language_without_one_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(UsageError, match=r"training\.unanswerable: .*'am'; expected one of ar, cs,"):
        no_answer.statement("am")
