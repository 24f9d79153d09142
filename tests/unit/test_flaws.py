import pytest

from aloftrag.prompts import flaws, write_qa

SENTENCES = {
    "en": "Who built the old mill beside the river, and in which year?",
    "de": "Wer hat die alte Mühle am Fluss gebaut, und in welchem Jahr?",
    "fr": "Qui a construit le vieux moulin au bord de la rivière, et en quelle année ?",
    "ru": "Кто построил старую мельницу у реки и в каком году?",
    "ja": "川のそばの古い水車小屋を建てたのは誰ですか。",
    "zh": "谁在哪一年建造了河边的旧磨坊？",
}


@pytest.mark.parametrize("language", SENTENCES)
@pytest.mark.parametrize("wanted", SENTENCES)
def test_a_question_in_another_language_is_seen(language: str, wanted: str) -> None:
    assert flaws.wrong_language(SENTENCES[language], wanted) == (language != wanted)


def test_of_a_language_that_the_identifier_does_not_know_nothing_is_said() -> None:
    assert flaws.wrong_language("Quoi?", "gv") is None


@pytest.mark.parametrize(
    ("language", "question"),
    [
        ("en", "What does the text say about boats?"),
        ("en", "According to this passage, who sails?"),
        ("en", "Who is named in THE ABOVE PARAGRAPH?"),
        ("de", "Was steht im Text über Boote?"),
        ("de", "Worum geht es in diesem Abschnitt und in der Passage?"),
        ("de", "Wer wird laut obigem Text genannt, im obigen Absatz?"),
        ("fr", "De quoi parle le texte ?"),
        ("fr", "Que dit l'article ?"),
        ("es", "¿Qué dice el párrafo?"),
        ("pt", "Do que fala o trecho?"),
    ],
)
def test_a_question_that_speaks_of_the_text_is_seen(language: str, question: str) -> None:
    assert flaws.refers_to_text(question, language) is True


@pytest.mark.parametrize(
    ("language", "question"),
    [
        ("en", "Who wrote a textbook?"),
        ("en", "What is textile?"),
        ("de", "Wer baute die Mühle?"),
        ("fr", "Qui a construit le moulin ?"),
        ("es", "¿Quién?"),
    ],
)
def test_a_question_about_something_else_is_not_taken_for_one_about_the_text(language: str, question: str) -> None:
    assert flaws.refers_to_text(question, language) is False


def test_of_a_language_whose_words_for_text_are_unknown_nothing_is_said() -> None:
    assert flaws.refers_to_text("What does the text say?", "fi") is None


def test_a_question_that_copies_six_words_of_the_instruction_is_seen() -> None:
    words = write_qa.INSTRUCTION.split()
    assert flaws.copies_instruction(f"Please: {' '.join(words[3:9]).upper()}!")
    assert not flaws.copies_instruction(" ".join(words[3:8]))


def test_a_real_question_copies_nothing() -> None:
    assert not any(flaws.copies_instruction(question) for question in [*SENTENCES.values(), "", "Who?"])
