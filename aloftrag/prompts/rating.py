"""Reading a rating from 0 to 10, and the form in which we ask for one."""

import re
from collections.abc import Mapping

# Ten is a word: no rating is the beginning of another, so the first token alone decides, and its probabilities are those of ratings.
FORM = r"([0-9]|ten)"
PREFILL = "### Rating\n"
ASK = "Reply with one digit from 0 to 9, or with the word ten, and nothing else."
ALTERNATIVES = 20  # first tokens: the digits, and "ten" in up to three pieces
MAX_TOKENS = 16
_NUMBER = re.compile(r"\[?(\d{1,2}(?:\.\d+)?)\]?(?:\s*/\s*10)?\.?")


def read(reply: str) -> float | None:
    """The rating in a reply, None when there is none.

    >>> [read(reply) for reply in ("8", "8.5", "[8]", "8/10", "٨", "ten")]
    [8.0, 8.5, 8.0, 8.0, 8.0, 10.0]
    >>> [read(reply) for reply in ("nan", "85", "-3", "good", "")]
    [None, None, None, None, None]
    """
    reply = reply.strip()
    if reply == "ten":
        return 10.0
    found = _NUMBER.fullmatch(reply)
    if not found:
        return None
    rating = float(found[1])
    return rating if 0 <= rating <= 10 else None


def written(rating: int) -> str:
    """A rating as a reply in the asked form."""
    return "ten" if rating == 10 else str(rating)


def expected(first_tokens: Mapping[str, float] | None) -> float | None:
    """The mean rating over the probabilities of a reply's first token, renormalised over 0 to 10; None without any.

    >>> expected({"8": 0.5, "te": 0.25, " the": 0.25})
    8.666666666666666
    """
    total = mean = 0.0
    for token, probability in (first_tokens or {}).items():
        rating = 10.0 if token.strip() and "ten".startswith(token.strip()) else read(token)
        if rating is not None:
            total += probability
            mean += probability * rating
    return mean / total if total else None
