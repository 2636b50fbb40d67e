"""What processes that share a batch tell each other: the samples of all, for losses that want them, and statistics."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from kd_methods.contract import Batch, Outputs

from ..optimizers import Part


def gathered(
    student: Outputs, teacher: Outputs | None, batch: Batch, part: Part
) -> tuple[Outputs, Outputs | None, Batch]:
    """Outputs and batch of all processes, in the batch's order; gradients reach each process's own samples.

    Of a batch in several parts, those that all processes have at a time.
    """

    def of_all(mine: Tensor) -> Tensor:
        return part.replica.gathered(mine, part.lengths)

    tensors = {name: of_all(value) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    whole = replace(batch, **tensors, whole=part.count == 1)  # type: ignore[arg-type]
    return student.each(of_all), teacher and teacher.each(of_all), whole


def running_statistics(*modules: nn.Module) -> list[Tensor]:
    """The running means and variances of the batch-norms that follow the batches."""
    every = dict.fromkeys(child for module in modules for child in module.modules())
    norms = [norm for norm in every if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training]
    pairs = [(norm.running_mean, norm.running_var) for norm in norms]
    return [statistic for pair in pairs for statistic in pair if statistic is not None]
