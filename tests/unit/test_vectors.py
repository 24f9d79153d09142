from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from aloftrag import artifacts
from aloftrag.retrieval.vectors import embedder_use, hold_usable, vector_column, vectors_of

USABLE = np.array([[0.6, 0.8], [-1.0, 0.0], [0.0, 0.997]], np.float32)  # half precision is not exact


@pytest.mark.parametrize("unusable", [[0.0, 0.0], [np.nan, 0.0], [np.inf, 0.0], [0.3, 0.3]])
def test_a_vector_without_a_direction_is_an_error_that_names_its_row(unusable: list[float]) -> None:
    hold_usable(USABLE, ["a", "b", "c"])
    with pytest.raises(ValueError, match="no usable vector for d-7"):
        hold_usable(np.vstack([USABLE, [unusable]]), ["a", "b", "c", "d-7"])


def test_vectors_come_back_from_their_column_row_by_row() -> None:
    table = pa.table({"vector": vector_column(USABLE)})
    for found in (table, pa.concat_tables([table.slice(0, 1), table.slice(1)])):
        assert np.array_equal(vectors_of(found), USABLE.astype(np.float16))


def test_the_embedders_of_a_step_are_counted_as_many_as_were_started(tmp_path: Path) -> None:
    for name, count in (("index", 2), ("question_vectors", 1)):
        for number in range(count):
            use = {"start_seconds": 1.0, "seconds": 10.0, "characters": 100}
            artifacts.write_json(tmp_path / f"{name}-use" / f"{number}.json", use)
        (tmp_path / f"{name}-use" / "count.txt").write_text(str(count))
    assert embedder_use(tmp_path) == {"count": 2, "start_seconds": 3.0, "seconds": 30.0, "characters": 300}
