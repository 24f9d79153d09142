"""Secrets out of what is printed and saved: credentials in addresses, keys in settings, and what the environment keeps secret."""

import os
import re
from typing import Any

HIDDEN = "***"
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s'\"]+(?=@)")
_IN_QUERY = re.compile(r"(?i)([?&](?:[\w-]*(?:key|token|secret|password|signature|credential)|sig)=)[^&\s'\"]+")
_NAMES = re.compile(r"(?i)(?:api_?key|access_?key|token|secret|password|credentials?)$")  # of settings and environment variables
_SHORTEST = 8  # characters of an environment variable's value that is looked for; less would hide words


def text(said: str) -> str:
    """A text without secrets."""
    said = _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_ADDRESS.sub(HIDDEN, said))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _NAMES.search(name):
            said = said.replace(value, HIDDEN)
    return said


def data(value: Any) -> Any:
    """Plain data (as of JSON) without secrets."""
    if isinstance(value, dict):
        return {key: HIDDEN if isinstance(item, str) and _NAMES.search(key) else data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [data(item) for item in value]
    return text(value) if isinstance(value, str) else value
