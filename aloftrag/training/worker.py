"""A training worker among all of them, and what it says to the others; one alone says nothing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Worker:
    """This worker's number, from 0, and how many there are."""

    rank: int = 0
    count: int = 1

    def sum(self, tensor: "torch.Tensor") -> None:
        """Add up a tensor over all workers, in place."""
        if self.count > 1:
            import torch

            torch.distributed.all_reduce(tensor)

    def of_first(self, value: Any) -> Any:
        """What the first worker has, on every worker."""
        if self.count == 1:
            return value
        import torch

        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Until every worker has come here."""
        if self.count > 1:
            import torch

            torch.distributed.barrier()
