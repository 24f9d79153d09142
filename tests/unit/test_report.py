from pathlib import Path

import pytest

from aloftrag import report, schemas
from tests.steps import tables


def test_similarities_of_positives_and_negatives_are_shown_side_by_side(tmp_path: Path) -> None:
    first = tables.negative("a-0", ["b", "c"]) | {"positive_similarity": 0.71, "similarities": [0.52, 0.61]}
    second = tables.negative("b-0", ["c"]) | {"positive_similarity": 0.74, "similarities": [0.64]}
    none = tables.negative("c-0", []) | {"positive_similarity": 0.5}
    folder = tables.write(tmp_path / "negatives", schemas.NEGATIVES, [first, second, none], files=2)
    shown = report.similarities(folder)
    assert [between for between, *_ in shown] == ["0.50 to 0.55", "0.55 to 0.60", "0.60 to 0.65", "0.65 to 0.70", "0.70 to 0.75"]
    assert [own for _, own, _ in shown] == pytest.approx([1 / 3, 0, 0, 0, 2 / 3])
    assert [other for *_, other in shown] == pytest.approx([1 / 3, 0, 2 / 3, 0, 0])
