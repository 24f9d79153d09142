"""Which of a question's nearest texts are its negatives: hard, but not right answers too.

A text that is about as similar to the question as its own text often answers it as well. ``relative_margin`` is the positive-aware
rule of NV-Retriever (arXiv 2407.15831), as sentence-transformers names it: a text more similar to the question than
``positive - |positive| x margin`` is no negative.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

TOO_SIMILAR = "as similar to the question as its own text"
COPY_OF_POSITIVE = "near-duplicate of the question's own text"
COPY_OF_SKIPPED = "near-duplicate of a text that is as similar"
COPY_OF_NEGATIVE = "near-duplicate of another negative"
AUTO_SKIPS = 0.1  # of the neighbours of a sample of questions


@dataclass(frozen=True)
class Rules:
    """What holds for all questions of a run."""

    negatives: int  # wanted for each question
    margin: float | None = None  # None: similar texts are negatives however similar they are
    clusters: Mapping[str, str] = field(default_factory=dict)  # of the texts that have near-duplicates


@dataclass(frozen=True)
class Choice:
    """What became of a question's nearest texts, by their places in the list, which begin with 0."""

    kept: list[int]
    skipped: list[tuple[int, str]]  # place and reason, of those before the last that is kept


def choose(ids: np.ndarray, similarities: np.ndarray, own: str, positive: float, rules: Rules) -> Choice:
    """The negatives among a question's nearest texts, most similar first.

    ``ids``: str [texts], without empty ones; ``own`` is the question's text and ``positive`` its similarity.
    """
    most = np.inf if rules.margin is None else positive - abs(positive) * rules.margin
    if not rules.clusters:  # quick: nothing depends on what was kept before
        is_other = ids != own
        kept = np.flatnonzero(is_other & (similarities <= most))[: rules.negatives]
        seen = kept[-1] if len(kept) == rules.negatives else len(ids)
        return Choice(kept.tolist(), [(int(place), TOO_SIMILAR) for place in np.flatnonzero((is_other & (similarities > most))[:seen])])
    own_cluster = rules.clusters.get(own)
    choice, used, too_similar = Choice([], []), set(), set()
    for place, (text_id, similarity) in enumerate(zip(ids.tolist(), similarities.tolist(), strict=True)):
        cluster = rules.clusters.get(text_id)
        if text_id == own:
            continue
        if cluster is not None and cluster == own_cluster:
            choice.skipped.append((place, COPY_OF_POSITIVE))
        elif similarity > most:
            choice.skipped.append((place, TOO_SIMILAR))
            too_similar.add(cluster)
        elif cluster is not None and cluster in too_similar:
            choice.skipped.append((place, COPY_OF_SKIPPED))
        elif cluster is not None and cluster in used:
            choice.skipped.append((place, COPY_OF_NEGATIVE))
        else:
            used.add(cluster)
            choice.kept.append(place)
            if len(choice.kept) == rules.negatives:
                break
    return choice


def gaps(ids: np.ndarray, similarities: np.ndarray, own: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """By what share of its own text's similarity each neighbour is less similar to a question: float64, of all neighbours.

    ``ids``, ``similarities``: [questions, texts]; ``own``, ``positive``: [questions]. Negative where a neighbour is more similar.
    """
    relative = (positive[:, None] - similarities) / np.abs(positive)[:, None]
    return relative[(ids != own[:, None]) & np.isfinite(similarities)]


def auto_margin(relative_gaps: np.ndarray) -> float:
    """The margin that skips the nearest ``AUTO_SKIPS`` of neighbours, at least 0, so that none is more similar than the positive.

    A fixed margin means different things to different embedders: the run's own distribution says how near is near.
    """
    return max(0.0, float(np.quantile(relative_gaps, AUTO_SKIPS))) if len(relative_gaps) else 0.0
