import numpy as np
import pyarrow as pa
import pytest

from aloftrag.retrieval.vectors import hold_usable, vector_column, vectors_of

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
