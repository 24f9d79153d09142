"""Reading a rating from 0 to 10, and the form in which we ask for one."""

import re

# Two digits: no rating is the beginning of another, so the choice between 1 and 10 is made before the reply may end.
FORM = r"(0[0-9]|10)"
PREFILL = "### Rating\n"
MAX_TOKENS = 16
_NUMBER = re.compile(r"\[?(\d{1,2}(?:\.\d+)?)\]?(?:\s*/\s*10)?\.?")


def read(reply: str) -> float | None:
    """The rating in a reply, None when there is none.

    >>> [read(reply) for reply in ("08", "8.5", "[8]", "8/10", "٨")]
    [8.0, 8.5, 8.0, 8.0, 8.0]
    >>> [read(reply) for reply in ("nan", "85", "-3", "good", "")]
    [None, None, None, None, None]
    """
    found = _NUMBER.fullmatch(reply.strip())
    if not found:
        return None
    rating = float(found[1])
    return rating if 0 <= rating <= 10 else None
