"""Reading a rating from 0 to 10, and the form in which we ask for one."""

import re
from collections.abc import Mapping

# No rating is the beginning of another, so the first token alone decides, and its probabilities are those of ratings. One is a word
# as well as ten: "1" is where models begin a 10, and SmolLM2 held to digits gave it to every text.
WRITTEN = ["0", "one", *"23456789", "ten"]
FORM = f"({'|'.join(WRITTEN)})"
PREFILL = "### Rating\n"
ASK = "Reply with a digit, for 1 and 10 with a word (one, ten), and nothing else."
ALTERNATIVES = 20  # first tokens: the digits, and the words in up to three pieces each
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
    if reply in WRITTEN:
        return float(WRITTEN.index(reply))
    found = _NUMBER.fullmatch(reply)
    if not found:
        return None
    rating = float(found[1])
    return rating if 0 <= rating <= 10 else None


def expected(first_tokens: Mapping[str, float] | None) -> float | None:
    """The mean rating over the probabilities of a reply's first token, renormalised over 0 to 10; None without any.

    >>> expected({"8": 0.5, "te": 0.25, " the": 0.25})
    8.666666666666666
    """
    total = mean = 0.0
    for token, probability in (first_tokens or {}).items():
        for rating, written in enumerate(WRITTEN):
            if token.strip() and written.startswith(token.strip()):
                total += probability
                mean += probability * rating
    return mean / total if total else None
