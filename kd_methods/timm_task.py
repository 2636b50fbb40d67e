"""A Distiller as a task of timm's training script. Importing this module imports timm, which needs ``timm.task``."""

from __future__ import annotations

from typing import Any

from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from .distiller import Distiller


class DistillerTask(ClassificationTask):
    """``task(input, target)`` gives ``loss`` and ``output``, and every term by name, as timm's loop expects.

    What is trained, wrapped for DDP or averaged is the Distiller, what is evaluated and saved as ``state_dict`` the
    deployed student; the rest of its state is the checkpoint's ``task_state``.

    Args:
        kd: prepared where its method needs that, and in the phase that is trained.
        batches: how many batches the whole training has (epochs x len(loader)), by which the method's terms warm up.
        **kwargs: ``criterion`` or ``criterion_kwargs`` of the task's own loss, by default the Distiller's, and
            ``device``, ``dtype`` and ``verbose`` as for timm's tasks.
    """

    def __init__(self, kd: Distiller, batches: int, **kwargs: Any) -> None:
        if not {"criterion", "criterion_kwargs"} & kwargs.keys():
            kwargs["criterion"] = kd.task_loss
        super().__init__(kd, **kwargs)
        kd.task_loss = self.criterion
        self.batches, self.seen = batches, 0

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) images and labels, (B,) or soft (B, K), to the losses and the student's logits (B, K)."""
        losses = self.trainable_module(input, target, progress=min(self.seen / self.batches, 1.0))
        self.seen += self.training
        return {**losses.terms(), "loss": losses.total(), "output": losses.logits}

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        trainable = unwrap_model(module or self.get_trainable_module(ema=ema))
        return trainable.deployed() if isinstance(trainable, Distiller) else None

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        return {"seen": self.seen, "distiller": unwrap_model(self.get_trainable_module(ema=ema)).state_dict()}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        if state:
            self.seen = state["seen"]
            unwrap_model(self.get_trainable_module(ema=ema)).load_state_dict(state["distiller"], strict)
