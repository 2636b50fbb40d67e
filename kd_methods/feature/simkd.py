"""Distillation with the reused teacher classifier, Chen et al. 2022."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, DataInfo, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..errors import UserError
from ..functional.feature import same_size
from ..registry import register
from ._maps import only_pools


class Projector(nn.Sequential):
    """Layers to the teacher's channels, after pooling larger maps to the teacher's size."""

    def __init__(self, teacher_shape: tuple[int, ...], layers: Iterable[nn.Module]) -> None:
        super().__init__(*layers)
        self.size = (teacher_shape[1], teacher_shape[2])

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > self.size[-1]:
            x = F.adaptive_avg_pool2d(x, self.size)
        return super().forward(x)


def bottleneck(c_in: int, c_out: int, factor: int) -> Iterator[nn.Module]:
    """1x1, 3x3 and 1x1 convolutions, narrower within by ``factor``, each with BN and ReLU."""
    mid = max(1, c_out // factor)
    for a, b, kernel in ((c_in, mid, 1), (mid, mid, 3), (mid, c_out, 1)):
        yield nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False)
        yield nn.BatchNorm2d(b)
        yield nn.ReLU()


@register
class SimKD(Method):
    """Trains the student's features for the teacher's classifier, which replaces the student's own."""

    card = Card(
        name="simkd",
        version=1,
        family="feature",
        title="SimKD",
        paper="chen2022simkd",
        formula="L = beta * MSE(P(F_s), F_t) on the last maps; prediction by the teacher's classifier after P",
        source="authors' models/util.py (SimKD) and README (CE 0, KD 0, beta 1, factor 2)",
        optimum="where the projected student map equals the teacher's",
        divergences=(
            "the student's own classifier is removed: it would receive no gradient and is not deployed",
            "trunk, P and the teacher's classifier are deployed; their size and cost count as the student's",
            "labels are not used",
        ),
    )
    needs = Needs(student=("last_map",), teacher=("last_map",), min_batch=2)

    class Settings(MethodSettings):
        beta: float = Field(1.0, ge=0, description="weight of the feature term")
        factor: int = Field(2, ge=1, description="reduction of the projector's width")

    settings: Settings

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        shapes, name = (student.shapes("last_map")[0], self.teacher.shapes("last_map")[0]), self.card.name
        if len(student.shape(student.layout.last_map)) != 3:
            raise UserError(
                f"method '{name}' needs a student with a last map (C, H, W); use another method for this pair"
            )
        if not only_pools(self.teacher):
            raise UserError(f"method '{name}' needs a teacher that only pools between its last map and its classifier")
        for network in (student, self.teacher):
            classifier(network, name)
        self.projector = self.make_projector(*shapes)

    def make_projector(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> Projector:
        """From a map (C, H, W) of the student to the teacher's channels, at the smaller one of their sizes."""
        return Projector(teacher_shape, bottleneck(student_shape[0], teacher_shape[0], self.settings.factor))

    def adapt(self, student: Network) -> Network:
        """The student's trunk, the projector and the teacher's classifier (frozen), as one network."""
        student = copy.deepcopy(student)
        name = self.card.name
        head = copy.deepcopy(self.teacher.module.get_submodule(classifier(self.teacher, name)))
        student.module.set_submodule(classifier(student, name), head.requires_grad_(False))
        return student.insert(student.layout.last_map, "simkd_projector", self.projector)

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        s, t = same_size(student.last_map, teacher.last_map)
        return Losses(distill={"feature": self.settings.beta * functional.hint(s, t)})


def classifier(network: Network, method: str) -> str:
    """Name of the one linear layer that follows the pooled vector; ``method`` needs it.

    Raises:
        UserError: something else follows it.
    """
    device = next(network.module.parameters()).device
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in network.module.named_modules()
        if not list(module.children()) and not isinstance(module, nn.Dropout | nn.Identity)
    ]
    with torch.no_grad():
        network.resume(network.layout.pooled, torch.zeros(2, *network.shapes("pooled")[0], device=device))
    for hook in hooks:
        hook.remove()
    if len(called) != 1 or not isinstance(network.module.get_submodule(called[0]), nn.Linear):
        raise UserError(f"method '{method}' needs classifiers that are one linear layer after the pooled vector")
    return called[0]
