"""Language codes and their English names, from the Unicode CLDR data that Babel carries."""

from functools import cache

# Written languages in which a question need not end in a question mark of its own.
NO_FINAL_QUESTION_MARK = frozenset({"am", "bo", "dz", "hy", "ja", "km", "lo", "my", "th", "ti"})
# Languages so close that an identifier takes one for the other.
CLOSE = (frozenset({"da", "nb", "nn", "no"}), frozenset({"bs", "hr", "sr", "sh"}), frozenset({"id", "ms"}))
# Written without spaces between words: compared by characters instead.
NO_WORD_SPACES = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th", "yue", "zh"})


@cache
def _names() -> dict[str, str]:
    from babel import Locale

    not_a_language = {"mul", "und", "zxx"}
    return {code: name for code, name in Locale("en").languages.items() if "_" not in code and code not in not_a_language}


def is_known(code: str) -> bool:
    """Whether ``code`` is an ISO 639-1 code, or an ISO 639-3 code that CLDR names."""
    return code in _names()


def english_name(code: str) -> str:
    """The English name of a language code: ``de`` gives ``German``."""
    return _names()[code]
