"""Overhaul of feature distillation, Heo et al. 2019."""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..functional.feature import same_size
from ..registry import register
from ._connectors import Connector
from ._maps import matched, require_signs


def expected_negative(scale: Tensor, shift: Tensor) -> Tensor:
    """E[x | x < 0] per channel of a normal with deviation |scale| and mean shift; -3 |scale| where x < 0 is rare."""
    deviation = scale.detach().double().abs().clamp_min(1e-12)
    ratio = shift.detach().double() / deviation
    below = torch.special.ndtr(-ratio)
    density = torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    mean = shift.detach().double() - deviation * density / below.clamp_min(1e-3)
    return torch.where(below > 1e-3, mean, -3 * deviation).to(scale.dtype)


class Settings(MethodSettings):
    beta: float = Field(1e-3, ge=0, description="weight of the feature term")
    teacher_bn: Literal["eval", "batch"] = Field(
        "eval", description="statistics in the teacher for this term: running ones or the batch's"
    )


@register
class OFD(Method[Settings]):
    """Matches pre-activations where they matter after the ReLU: partial L2 with a margin for the negative side."""

    card = Card(
        name="ofd",
        version=1,
        family="feature",
        title="OFD",
        paper="heo2019ofd",
        formula="L = CE(z_s, y) + beta * sum_l 2^-(L-l) / B * sum partial(D(F_s,l), max(F_t,l, m)), m = E[x | x < 0]",
        source="authors' CIFAR-100/distiller.py (weight 1e-3); mdistiller distillers/OFD.py",
        optimum="where the connected student pre-activations equal the teacher's, negative ones lifted to the margin",
        divergences=(
            "the authors run the teacher in training mode, which also moves its running statistics; here it is in eval"
            " mode, or with teacher_bn=batch normalised by the batch with its buffers left alone",
            "m comes from the batch-norm of the main branch before the ReLU, as in the authors' code; where none of the"
            " right width is there, it is the mean of the channel's negative values in the batch, 0 without any",
            "networks with different numbers of stages are matched from the last stage backwards, and maps of different"
            " sizes are average-pooled to the smaller one (mdistiller: the teacher's to the student's size)",
        ),
        batch="global",
    )
    needs = Needs(student=("preacts",), teacher=("preacts",), min_batch=2)

    def setup(self) -> None:
        require_signs("ofd", self.student, self.teacher)
        shapes = matched("ofd", self.student, self.teacher, "preacts")
        self.connectors = nn.ModuleList(Connector(s, (t[0], *s[1:]), rectify=False) for s, t in shapes)
        self._norms: tuple[list[nn.BatchNorm2d | None], ...] = ()

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        n = len(self.connectors)
        if not self._norms:
            # Found on first use, when the teacher has its weights and its device; in a tuple, so no part of the method.
            self._norms = (norms_before(self.teacher, batch.inputs[:1])[-n:],)
        targets = teacher.preacts[-n:]
        if self.settings.teacher_bn == "batch":
            with torch.no_grad(), self.teacher.batch_statistics():
                targets = self.teacher(batch.teacher_inputs, fields=("preacts",)).preacts[-n:]
        terms = []
        pairs = zip(self.connectors, student.preacts[-n:], targets, self._norms[0], strict=True)
        for i, (connector, s, t, norm) in enumerate(pairs, 1 - n):
            margin = _mean_negative(t) if norm is None else expected_negative(norm.weight, norm.bias)
            terms.append(2.0**i * functional.partial_l2(*same_size(connector(s), t), margin))
        term = self.settings.beta * torch.stack(terms).sum()
        return Losses(task={"task": batch.loss(student.logits)}, distill={"feature": term})


def _mean_negative(x: Tensor) -> Tensor:
    negative = x.to(torch.promote_types(x.dtype, torch.float32)).clamp_max(0)
    return negative.sum((0, 2, 3)) / (negative < 0).sum((0, 2, 3)).clamp_min(1)


class _SeenNorms(TorchFunctionMode):
    """Sees batch-norms run, those too whose module does more: ids of their weights by what gave the output."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[Any, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.batch_norm:
            given = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
            self.weights[out.grad_fn] = id(given.get("weight"))
        return out


def norms_before(network: Network, x: Tensor) -> list[nn.BatchNorm2d | None]:
    """For each pre-activation the batch-norm that gave it, directly or through a sum (there its first operand)."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    with torch.enable_grad(), _SeenNorms() as seen:
        images = x.detach().to(norms[0].weight.dtype if norms else torch.float32).requires_grad_()
        outputs = network(images, fields=("preacts",)).preacts
    of_weight = {id(norm.weight): norm for norm in norms}
    nodes = {node: of_weight[weight] for node, weight in seen.weights.items() if weight in of_weight}
    before: list[nn.BatchNorm2d | None] = []
    for output in outputs:
        waiting = [output.grad_fn]
        while waiting and waiting[0] not in nodes:
            node = waiting.pop(0)
            if "Add" in node.name():
                waiting += [parent for parent, _ in node.next_functions if parent is not None]
        norm = nodes[waiting[0]] if waiting else None
        before.append(norm if norm is not None and norm.num_features == output.shape[1] else None)
    return before
