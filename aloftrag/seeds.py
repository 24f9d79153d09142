"""Random choices drawn from (seed, purpose, row id), so that neither order nor blocks change a row."""

import hashlib
import random


def _bits(seed: int, purpose: str, row_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{purpose}:{row_id}".encode(), digest_size=8).digest(), "big")


def draw(seed: int, purpose: str, row_id: str) -> float:
    """A number from 0 to below 1 that belongs to this row."""
    return _bits(seed, purpose, row_id) / 2**64


def generator(seed: int, purpose: str, row_id: str) -> random.Random:
    """A random generator that belongs to this row."""
    return random.Random(_bits(seed, purpose, row_id))
