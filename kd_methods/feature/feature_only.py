"""Feature-only distillation, Cooper et al. 2025 (arXiv 2511.14981)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn

from .. import functional
from ..analysis.quality import EntropyNorm, quality
from ..contract import (
    Batch,
    Card,
    Losses,
    Method,
    MethodSettings,
    Needs,
    Network,
    Outputs,
    Progress,
    TeacherPass,
)
from ..errors import UserError
from ..functional.feature import same_size
from ..registry import register
from ._connectors import spatial, three_layers

LAYERS = 4
"""How many layers are matched at most."""


class Detach(nn.Module):
    """Passes features on and no gradients back: what follows is trained by the labels alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Settings(MethodSettings):
    beta: float = Field(1.0, ge=0, description="weight of the feature term")
    selection: Literal["Q", "S", "I", "E", "sqrtIE", "stages"] = Field(
        "Q", description="teacher's layers: those of highest quality, of one of its parts, or the ends of stages"
    )
    layers: tuple[NonNegativeInt, ...] | None = Field(
        None, description="teacher's generalised layers by index, for the student's last stages; null to find"
    )
    detach: bool = Field(True, description="labels train only what follows the last matched layer")
    kd: float = Field(0.0, ge=0, description="weight of a KD term on the logits (T^2 included)")
    temperature: float = Field(4.0, gt=0, description="temperature of the KD term")
    mapping: Literal["one_to_one", "full"] = Field("one_to_one", description="which layers are matched with which")
    distance: Literal["mse", "gram"] = Field("mse", description="projected features, or Gram matrices of cosines")
    projector: Literal["conv1x1", "three_layer"] = Field("conv1x1", description="map to the teacher's channels")
    entropy_norm: EntropyNorm = Field("ln5", description="what the entropy in I is divided by")
    samples: int = Field(5000, ge=20, description="images that S and E are measured on")
    per_class: int = Field(500, ge=2, description="images per class that spectra are measured on")
    self_pairs: bool = Field(True, description="S counts every image's pair with itself, as the public code does")
    legacy: tuple[Literal["view", "gram"], ...] = Field((), description="mistakes of the public code to repeat")

    @model_validator(mode="after")
    def _repeats_something(self) -> Self:
        for mistake, distance in (("view", "mse"), ("gram", "gram")):
            if mistake in self.legacy and self.distance != distance:
                raise ValueError(f"legacy {mistake} is a mistake of distance {distance}")
        if not self.self_pairs and (self.layers is not None or self.selection not in ("Q", "S")):
            raise ValueError("self_pairs is about selection Q and S")
        return self


@register
class FeatureOnly(Method[Settings]):
    """Trains the student's backbone by feature losses alone; labels train what follows it, on detached features."""

    card = Card(
        name="feature_only",
        version=3,
        family="feature",
        title="Feature-only KD",
        paper="cooper2025featureonly",
        formula=(
            "L = CE(head(stop_grad(f_s)), y) + beta * mean_i MSE(P_i(f_s,i), f_t,m(i)); f_t the teacher's layers of"
            " highest quality Q = S + sqrt(I E), in order of depth; the larger map average-pooled to the smaller"
        ),
        source="Thegolfingocto/KD_wo_CE @3abceed, its configurations (OursMulti)",
        optimum="where the projected student maps equal the teacher's",
        divergences=(
            "the public code holds lists of layers; here the layers of highest quality are found for every teacher",
            "ln 5 in I is the code's, perhaps meant as ln of the samples per class: setting entropy_norm",
            "in S every image is paired with itself, too, as the code does, perhaps by a slip: setting self_pairs",
            "a layer with fewer values than a class has images keeps its entropy, which the code loses to NaN (none of"
            " the paper's)",
            "one teacher pass with the student's batch, where the code stores teacher features and logits",
            "setting legacy: tokens reshaped instead of transposed (view), the first row of Gram matrices (gram);"
            " protocols cifar100-feature-only-legacy-lr and -legacy-aug: peak rates, crops and stored logits as the"
            " public code has them",
        ),
        recipe="cifar100-feature-only",
    )
    needs = Needs(student=("stages",), teacher=("stages",), min_batch=2)

    def setup(self) -> None:
        self.classes = self.info.num_classes
        student_stages, layout, chosen = self.student.layout.stages, self.teacher.layout, self.settings.layers
        by_stage = self.settings.selection == "stages" and chosen is None
        count = min(LAYERS, len(student_stages), len(layout.stages if by_stage else layout.layers))
        if chosen is not None:
            units = self._listed(chosen, count)
            count = len(units)
        self.student_units = student_stages[-count:]
        self._shapes = [self.student.shape(unit) for unit in self.student_units]
        maps = all(len(shape) == 3 for shape in (*self._shapes, *self.teacher.shapes("stages")))
        if "view" in self.settings.legacy and maps:
            raise UserError(f"setting {self.card.name}.legacy=view is about tokens, and both networks have maps")
        self._choose((layout.stages if by_stage else layout.layers)[-count:] if chosen is None else units)

    def _listed(self, chosen: tuple[int, ...], most: int) -> list[str]:
        layers = self.teacher.layout.layers
        if not 1 <= len(chosen) <= most or list(chosen) != sorted(set(chosen)) or max(chosen) >= len(layers):
            raise UserError(
                f"setting {self.card.name}.layers={list(chosen)}: 1 to {most} ascending indices below "
                f"{len(layers)} are needed for this pair"
            )
        return [layers[i] for i in chosen]

    def _choose(self, units: Sequence[str]) -> None:
        """Match the teacher's ``units``; every pair of layers that is compared gets its projector."""
        config, self.teacher_units = self.settings, tuple(units)
        assert len(units) == len(self.student_units)
        whole = config.mapping == "full"
        self.pairs = [(i, j) for i in range(len(units)) for j in range(len(units)) if whole or i == j]
        self.projectors = nn.ModuleDict()
        for i, j in self.pairs:
            shapes = self._shapes[i], self.teacher.shape(units[j])
            if config.distance == "mse":
                self.projectors[f"{i}-{j}"] = _projector(self.card.name, *shapes, config.projector == "three_layer")
        device = next(self.teacher.parameters()).device
        self.projectors.to(device).to(memory_format=torch.channels_last)
        self.needs = Needs(
            student_units=self.student_units,
            teacher_units=self.teacher_units,
            teacher=("logits",) if config.kd else (),
            min_batch=2,
        )

    def adapt(self, student: Network) -> Network:
        return student.insert(self.student_units[-1], "detached", Detach()) if self.settings.detach else student

    def deployed(self, student: Network) -> nn.Module:
        return student.module

    def gathers(self) -> bool:
        return self.settings.distance == "gram"

    def prepares(self) -> bool:
        return self.settings.layers is None and self.settings.selection != "stages"

    def prepare(self, teacher_pass: TeacherPass) -> None:
        config = self.settings
        if config.layers is None and config.selection != "stages":
            measured = quality(teacher_pass, self.teacher.layout.layers, self.classes, config.samples, config.per_class)
            how = config.selection, config.entropy_norm, config.self_pairs
            self._choose(measured.best(len(self.student_units), *how))

    def remarks(self) -> Sequence[str]:
        layers = self.teacher.layout.layers
        return [f"teacher's layers {', '.join(f'{layers.index(unit)} ({unit})' for unit in self.teacher_units)}"]

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        terms = [self._distance(i, j, student, teacher) for i, j in self.pairs]
        result = Losses(
            task={"task": batch.loss(student.logits)},
            distill={"feature": config.beta * torch.stack(terms).mean()},
        )
        if config.kd:
            kd = functional.kd(student.logits, teacher.logits, temperature=config.temperature)
            result.distill["kd"] = config.kd * kd
        return result

    def _distance(self, i: int, j: int, student: Outputs, teacher: Outputs) -> Tensor:
        s, t = student[self.student_units[i]], teacher[self.teacher_units[j]]
        if self.settings.distance == "gram":
            return functional.cosine_gram(s, t, first_row="gram" in self.settings.legacy)
        s, t = spatial(s), spatial(t, scrambled="view" in self.settings.legacy)
        s, t = same_size(s, t)
        return functional.hint(self.projectors[f"{i}-{j}"](s), t)


def _projector(name: str, student: tuple[int, ...], teacher: tuple[int, ...], three_layer: bool) -> nn.Sequential:
    if {len(student), len(teacher)} == {2, 3}:
        raise UserError(
            f"method '{name}' needs maps on both sides or tokens on both, here {student} and {teacher}; "
            f"use another method for this pair"
        )
    c_s, c_t = (shape[1] if len(shape) == 2 else shape[0] for shape in (student, teacher))
    if three_layer:
        return three_layers(c_s, c_t, tokens=len(student) == 2)
    return nn.Sequential(nn.Conv2d(c_s, c_t, 1, bias=False))
