"""How the workers of a training run share its state: each has all of it, or DeepSpeed's ZeRO parts it among them."""

from pathlib import Path
from typing import Any

from aloftrag.job import Training
from aloftrag.training.model import Cost, adapted_model
from aloftrag.training.worker import Worker

_MOST_GRADIENT = 1.0  # the norm that a step's gradient is cut to
_OPTIMISER = "optimiser.pt"


class DataParallel:
    """Every worker holds the whole model; gradients are added up at the end of a step."""

    in_lockstep = False  # workers may have different numbers of batches in a step

    def __init__(self, folder: Path, settings: Training, worker: Worker, resume_from: Path | None):
        import torch

        self._worker = worker
        self.model = adapted_model(folder, settings, resume_from)
        self.cost = Cost.of(self.model)
        self.device = next(self.model.parameters()).device
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.AdamW(self._parameters)
        if resume_from:
            self._optimiser.load_state_dict(torch.load(resume_from / _OPTIMISER, map_location="cpu", weights_only=True))

    def backward(self, loss: Any) -> None:
        """Add the gradients of a worker's part of the step's loss."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Change the adapter by the gradients of all workers; returns their norm before it is cut."""
        import torch

        shown = [torch.zeros_like(part) if part.grad is None else part.grad for part in self._parameters]  # None: it had no row
        gradients = torch.cat([gradient.flatten() for gradient in shown])  # one conversation, not one for each matrix
        self._worker.sum(gradients)
        for parameter, part in zip(self._parameters, gradients.split([part.numel() for part in self._parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, _MOST_GRADIENT)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return float(norm)

    def save_adapter(self, folder: Path) -> None:
        """Write what peft loads; called by all workers."""
        if self._worker.rank == 0:
            self.model.save_pretrained(folder, safe_serialization=True)

    def save(self, folder: Path) -> None:
        """Write what ``resume_from`` takes; called by all workers."""
        import torch

        self.save_adapter(folder)
        if self._worker.rank == 0:
            torch.save(self._optimiser.state_dict(), folder / _OPTIMISER)


class Zero:
    """DeepSpeed's ZeRO: gradients and optimiser (stage 2), and the weights too (stage 3), are parted among the workers."""

    in_lockstep = True  # every batch is a conversation of all workers

    def __init__(self, folder: Path, settings: Training, worker: Worker, resume_from: Path | None):
        import deepspeed
        import torch
        from transformers.integrations import HfDeepSpeedConfig

        self._worker, self._stage = worker, int(settings.strategy[-1])
        on_gpu = torch.cuda.is_available()
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "managed_gradient_accumulation": False,  # a step is made of as many batches as it takes
            "gradient_clipping": _MOST_GRADIENT,
            "bf16": {"enabled": on_gpu and torch.cuda.is_bf16_supported()},
            "zero_optimization": {"stage": self._stage, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
        }
        self._parted_from_the_start = HfDeepSpeedConfig(config) if self._stage == 3 else None  # what transformers loads by, while it lives
        model = adapted_model(folder, settings, None)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._parameters = parameters
        self._engine, *_ = deepspeed.initialize(
            model=model, model_parameters=parameters, optimizer=torch.optim.AdamW(parameters), config=config, dist_init_required=False
        )
        self.model, self.cost, self.device = self._engine, Cost.of(model), self._engine.device
        if resume_from:
            self._engine.load_checkpoint(str(resume_from), tag="zero", load_module_strict=False)

    def backward(self, loss: Any) -> None:
        """Add the gradients of a worker's part of the step's loss; DeepSpeed takes the mean over workers, where we want the sum."""
        self._engine.backward(loss * self._worker.count)

    def step(self, learning_rate: float) -> float:
        """Change the adapter by the gradients of all workers; returns their norm before it is cut."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def save_adapter(self, folder: Path) -> None:
        """Write what peft loads; called by all workers."""
        import deepspeed

        with deepspeed.zero.GatheredParameters(self._parameters, enabled=self._stage == 3):
            if self._worker.rank == 0:
                self._engine.module.save_pretrained(folder, safe_serialization=True)

    def save(self, folder: Path) -> None:
        """Write what ``resume_from`` takes; called by all workers."""
        self.save_adapter(folder)
        self._engine.save_checkpoint(str(folder), tag="zero", save_latest=False, exclude_frozen_parameters=True)


Strategy = DataParallel | Zero


def start(folder: Path, settings: Training, worker: Worker, resume_from: Path | None) -> Strategy:
    """The strategy that ``training.strategy`` names, new or from a checkpoint."""
    return (DataParallel if settings.strategy == "ddp" else Zero)(folder, settings, worker, resume_from)
