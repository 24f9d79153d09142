import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aloftrag.training.batches import collate
from aloftrag.training.loss import loss_sums, weighted
from aloftrag.training.rows import ANSWER, CITATION, NONE, TrainingRow


@pytest.mark.parametrize(
    ("citation_weight", "expected"),
    [
        (None, 19 / 13),  # one mean over 3 + 10 tokens, as in the paper
        (1.0, 2.0),  # (3 + 1) / 2
        (3.0, 2.5),  # (3 * 3 + 1) / 4
        (1e9, 3.0),  # the citation alone
    ],
)
def test_a_step_of_three_citation_tokens_at_3_and_ten_answer_tokens_at_1(citation_weight: float | None, expected: float) -> None:
    loss = weighted(torch.tensor(9.0), torch.tensor(10.0), citation_tokens=3, answer_tokens=10, citation_weight=citation_weight)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("citation_weight", [None, 0.5, 1.0, 3.0])
def test_the_weight_does_not_change_the_scale(citation_weight: float | None) -> None:
    loss = weighted(torch.tensor(3 * 0.7), torch.tensor(10 * 0.7), 3, 10, citation_weight)
    assert loss.item() == pytest.approx(0.7)


# A "model" that looks at the last token only: row t is its next-token distribution after token t.
NEXT = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]).log()
ROWS = [
    TrainingRow("a", [0, 1, 1, 2], [NONE, NONE, CITATION, ANSWER]),
    TrainingRow("b", [2, 2, 0, 0, 1, 2], [NONE, NONE, NONE, CITATION, ANSWER, ANSWER]),
]


def model(input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **how: Any) -> Any:
    return SimpleNamespace(logits=NEXT[input_ids][:, logits_to_keep])


@pytest.mark.parametrize("batching", ["by-length", "packed"])
def test_each_target_token_counts_once_and_is_predicted_from_the_token_before(batching: Any) -> None:
    sums = loss_sums(model, collate(ROWS, batching))
    assert sums.citation.item() == pytest.approx(-math.log(0.8) - math.log(0.5))
    assert sums.answer.item() == pytest.approx(-math.log(0.1) - math.log(0.25) - math.log(0.1))
    assert sums.citations_right == 2


@pytest.mark.parametrize("batching", ["by-length", "packed"])
def test_rows_that_teach_nothing_have_a_loss_of_nothing_that_has_gradients(batching: Any) -> None:
    weights = torch.ones(3, 3, requires_grad=True)
    row = TrainingRow("a", [0, 1, 2], [NONE] * 3)
    sums = loss_sums(
        lambda input_ids, logits_to_keep, **_: SimpleNamespace(logits=weights[input_ids][:, logits_to_keep]), collate([row], batching)
    )
    (sums.citation + sums.answer).backward()
    assert sums.citation.item() == sums.answer.item() == 0
    assert weights.grad is not None
    assert not weights.grad.any()
