import pytest

from aloftrag import languages

ISO_639_1 = """
aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et eu
fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku
kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn
ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi
yo za zh zu
"""


def test_every_iso_639_1_code_is_known_and_has_a_name() -> None:
    assert len(ISO_639_1.split()) == 183
    assert all(languages.is_known(code) and languages.english_name(code) for code in ISO_639_1.split())


@pytest.mark.parametrize(
    ("code", "name"), [("en", "English"), ("de", "German"), ("ja", "Japanese"), ("yue", "Cantonese"), ("ceb", "Cebuano")]
)
def test_a_code_has_its_english_name(code: str, name: str) -> None:
    assert languages.english_name(code) == name


@pytest.mark.parametrize("code", ["", "xx", "EN", "de_AT", "de-AT", "zh_Hant", "english", "eng"])
def test_what_is_no_code_is_not_known(code: str) -> None:
    assert not languages.is_known(code)


def test_the_languages_with_ways_of_their_own_are_known_ones() -> None:
    assert all(languages.is_known(code) for code in languages.NO_WORD_SPACES | languages.NO_FINAL_QUESTION_MARK)
    assert {"zh", "ja", "th"} <= languages.NO_WORD_SPACES
    assert not {"ko", "vi", "en", "ar"} & languages.NO_WORD_SPACES
