import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloftrag.prompts import write_qa
from aloftrag.prompts.chat import ChatPrompt, PlainPrompt
from aloftrag.prompts.worked_examples import WorkedExample
from aloftrag.prompts.write_qa import QuestionAnswer

MILL = "# The mill\nThe mill was built in 1812. Ada Moss built it. It burned down. It stands again."
EXAMPLES = [
    WorkedExample(text="The lift carries 350 kg.", question="What does the lift carry?", answer="350 kg", text_rating=9),
    WorkedExample(text="The lamp is wiped.", question="What is wiped?", answer="the lamp", text_rating=4),
]


@pytest.mark.parametrize(
    "reply",
    [
        "Who built the mill?\n### Answer\nAda Moss",
        "\n Who built the mill? \n\n### Answer\n\n Ada Moss\n",
        "Who built the mill? ### Answer Ada Moss",
        " Who built the mill?\nAnswer: Ada Moss",
        "Who built the mill?\nAnswer:Ada Moss \n",
    ],
)
def test_a_question_and_an_answer_are_read_headed_or_plain(reply: str) -> None:
    assert write_qa.read(reply) == QuestionAnswer("Who built the mill?", "Ada Moss")


@pytest.mark.parametrize(
    "reply", ["", "Who built the mill?", "### Answer\nAda", "Who?\n### Answer\n", "Who?\nAnswer:", "Answer: Ada Moss", "\n\n"]
)
def test_a_reply_without_a_question_or_without_an_answer_gives_nothing(reply: str) -> None:
    assert write_qa.read(reply) is None


@pytest.mark.parametrize("reply", ["Who?\n### Answer\nAda\n### Answer\nBen", "### Text\nWho?\n### Answer\nAda"])
def test_a_reply_with_one_of_our_headings_inside_gives_nothing(reply: str) -> None:
    assert write_qa.read(reply) is None


def test_a_headed_answer_may_have_several_lines() -> None:
    assert write_qa.read("Who?\n### Answer\nAda\nand Ben") == QuestionAnswer("Who?", "Ada\nand Ben")


def test_equal_sentences_are_shared_out_equally_and_in_order() -> None:
    sentences = [f"Boat {number} sails at dawn." for number in range(6)]
    assert write_qa.parts(" ".join(sentences), 3) == [" ".join(sentences[start : start + 2]) for start in (0, 2, 4)]


def test_a_long_sentence_is_a_part_of_its_own() -> None:
    long = "The keeper writes the level of the water into the brown book every evening before he goes home."
    assert write_qa.parts(f"It is old. {long} It is wet.", 3) == ["It is old.", long, "It is wet."]


def test_the_heading_is_in_no_part() -> None:
    assert write_qa.parts(MILL, 2) == ["The mill was built in 1812. Ada Moss built it.", "It burned down. It stands again."]


_words = st.lists(st.from_regex(r"[a-zäж0-9]{1,9}", fullmatch=True), min_size=1, max_size=9)
_sentence = st.builds(lambda words, end: " ".join(words) + end, _words, st.sampled_from(".!?…؟।"))
_sentences = st.lists(_sentence, min_size=1, max_size=20)


@given(_sentences, st.lists(st.sampled_from([" ", "  ", "\n", "\n\n"]), min_size=20, max_size=20), st.integers(1, 8))
def test_parts_are_whole_sentences_that_cover_the_text_in_order(sentences: list[str], gaps: list[str], count: int) -> None:
    text = "".join(sentence + gap for sentence, gap in zip(sentences, gaps, strict=False))
    found = write_qa.parts(text, count)
    assert 1 <= len(found) <= count
    assert " ".join(found).split() == text.split()
    assert all(part and part[-1] in ".!?…؟।" for part in found)
    assert len(found) == 1 or count > 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MILL, "The mill"),
        ("\n## Boats ##x\nThey sail.", "Boats ##x"),
        ("The mill\nis old.", ""),
        ("# Only a heading", ""),
        ("# A\n\n ", ""),
        ("", ""),
    ],
)
def test_a_heading_is_the_markdown_line_above_a_text(text: str, expected: str) -> None:
    assert write_qa.heading(text) == expected


@pytest.mark.parametrize(
    ("question", "other"),
    [("Who built it?", "who  BUILT it"), ("Wer?", "Wer!"), ("Straße?", "STRASSE"), ("ｆｕｌｌ？", "full")],
)
def test_case_marks_and_spaces_do_not_make_another_question(question: str, other: str) -> None:
    assert write_qa.normalised(question) == write_qa.normalised(other)


@pytest.mark.parametrize(
    ("question", "other"),
    [("Who built it?", "Who burned it?"), ("वह दिन कब था?", "वह दान कब था?"), ("ใครมา", "ใครมี")],  # vowels may be combining marks
)
def test_other_words_make_another_question(question: str, other: str) -> None:
    assert write_qa.normalised(question) != write_qa.normalised(other)


def test_a_model_that_follows_instructions_is_asked_in_a_chat_about_the_text() -> None:
    prompt = write_qa.prompt("Der Text.", None, "de", "German", [], "instructions-first")
    assert isinstance(prompt, ChatPrompt)
    system, user = prompt.messages
    assert (system["role"], user) == ("system", {"role": "user", "content": "### Text\nDer Text."})
    assert "German" in system["content"]
    assert "{" not in system["content"]
    assert prompt.prefill == "### Question\n"


def test_a_part_is_named_below_the_whole_text_in_a_chat() -> None:
    prompt = write_qa.prompt(MILL, "Ada Moss built it.", "en", "English", [], "instructions-first")
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[1]["content"] == f"### Text\n{MILL}\n\n### Part\nAda Moss built it."


@pytest.mark.parametrize(
    ("language", "reply", "is_kept"),
    [
        ("en", "Who built the mill?\n### Answer\nAda Moss", True),
        ("en", "Ada built the mill.\n### Answer\nAda Moss", False),
        ("en", "Who built the mill?\n### Answer\n", False),
        ("en", "Who built the mill?\n### Answer\nAda\nBen", False),
        ("zh", "谁建造了河边的旧磨坊？\n### Answer\n艾达", True),
        ("ar", "من بنى الطاحونة القديمة؟\n### Answer\nآدا", True),
        ("el", "Ποιος έχτισε τον μύλο;\n### Answer\nΆντα", True),
        ("ja", "水車小屋を建てたのは誰ですか\n### Answer\nエイダ", True),
    ],
)
def test_the_asked_form_is_a_question_of_the_language_and_a_line_of_answer(language: str, reply: str, is_kept: bool) -> None:
    prompt = write_qa.prompt("text", None, language, "?", [], "instructions-first")
    assert prompt.form
    assert (re.fullmatch(prompt.form, reply) is not None) == is_kept
    assert not is_kept or write_qa.read(reply)


def test_a_model_that_follows_examples_is_shown_them_as_plain_text() -> None:
    prompt = write_qa.prompt("The ferry runs.", None, "en", "English", EXAMPLES, "instructions-first")
    assert isinstance(prompt, PlainPrompt)
    assert prompt.text.endswith(
        "Text: The lift carries 350 kg.\nQuestion: What does the lift carry?\nAnswer: 350 kg\n\n"
        "Text: The lamp is wiped.\nQuestion: What is wiped?\nAnswer: the lamp\n\n"
        "Text: The ferry runs.\nQuestion:"
    )
    assert prompt.stop == "\n\n"


def test_of_several_questions_with_examples_each_is_shown_the_heading_and_its_part_only() -> None:
    prompt = write_qa.prompt(MILL, "Ada Moss built it.\nIt burned down.", "en", "English", EXAMPLES, "instructions-first")
    assert isinstance(prompt, PlainPrompt)
    assert prompt.text.endswith("\n\nText: The mill: Ada Moss built it. It burned down.\nQuestion:")
