"""What a reply says when no text holds the answer (``training.unanswerable``), in the languages that we can say it in."""

from aloftrag.errors import UsageError

_STATEMENTS = {
    "ar": "النصوص لا تذكر ذلك.",
    "cs": "V textech to není.",
    "da": "Det står ikke i teksterne.",
    "de": "Das steht nicht in den Texten.",
    "el": "Τα κείμενα δεν το αναφέρουν.",
    "en": "The texts do not say.",
    "es": "Los textos no lo dicen.",
    "fa": "در متن‌ها نیامده است.",
    "fi": "Teksteissä ei kerrota sitä.",
    "fr": "Les textes ne le disent pas.",
    "he": "זה לא כתוב בטקסטים.",
    "hi": "पाठों में यह नहीं बताया गया है।",
    "hu": "A szövegekben ez nem szerepel.",
    "id": "Teks-teks itu tidak menyebutkannya.",
    "it": "I testi non lo dicono.",
    "ja": "テキストには書かれていません。",
    "ko": "본문에 나와 있지 않습니다.",
    "nb": "Det står ikke i tekstene.",
    "nl": "Dat staat niet in de teksten.",
    "no": "Det står ikke i tekstene.",
    "pl": "Teksty o tym nie mówią.",
    "pt": "Os textos não o dizem.",
    "ro": "Textele nu spun acest lucru.",
    "ru": "В текстах об этом не сказано.",
    "sv": "Det står inte i texterna.",
    "sw": "Maandishi hayasemi hilo.",
    "th": "ข้อความไม่ได้ระบุไว้",
    "tr": "Metinlerde bu belirtilmiyor.",
    "uk": "У текстах про це не сказано.",
    "vi": "Các văn bản không nói điều đó.",
    "zh": "文本中没有提到。",
}


def statement(language: str) -> str:
    """The statement in a language, by its code; raises ``UsageError`` for one that we have none in."""
    if language not in _STATEMENTS:
        raise UsageError(
            f"training.unanswerable: no reply to such a question is known in {language!r}; expected one of {', '.join(_STATEMENTS)}"
        )
    return _STATEMENTS[language]
