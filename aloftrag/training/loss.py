"""The loss of step 5 (paper 3.5), and what the metrics say of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aloftrag.training.batches import Batch
from aloftrag.training.rows import ANSWER, CITATION, NONE

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LossSums:
    """Sums over the target tokens of a batch; to be divided by the counts of the whole step."""

    citation: "torch.Tensor"
    answer: "torch.Tensor"
    citations_right: int  # citation tokens that the model would have written itself


def loss_sums(model: Any, batch: Batch) -> LossSums:
    """Cross-entropy of the target tokens; logits are computed where something is learned, nowhere else."""
    import torch
    from torch.nn.functional import cross_entropy

    predicts = batch.targets[:, 1:]  # the token at i is predicted from those up to i - 1; a row begins with no target
    columns = (predicts != NONE).any(dim=0).nonzero().squeeze(1)
    logits = model(
        input_ids=batch.token_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids, logits_to_keep=columns
    ).logits.float()
    labels, kinds = batch.token_ids[:, 1:][:, columns], predicts[:, columns]
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    is_citation, is_answer = kinds == CITATION, kinds == ANSWER
    with torch.no_grad():
        right = (logits.argmax(-1) == labels) & is_citation
    zero = losses.new_zeros(())
    return LossSums(
        citation=torch.where(is_citation, losses, zero).sum(),
        answer=torch.where(is_answer, losses, zero).sum(),
        citations_right=int(right.sum()),
    )


def weighted(
    citation: "torch.Tensor", answer: "torch.Tensor", citation_tokens: int, answer_tokens: int, citation_weight: float | None
) -> "torch.Tensor":
    """The loss from summed losses and token counts of the whole step.

    None: one mean over all target tokens, as in the paper. Else (w * mean citation + mean answer) / (w + 1), which keeps the
    loss on one scale whatever the weight.
    """
    if citation_weight is None:
        return (citation + answer) / (citation_tokens + answer_tokens)
    return (citation_weight * citation / citation_tokens + answer / answer_tokens) / (citation_weight + 1)
