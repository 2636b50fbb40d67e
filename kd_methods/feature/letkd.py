"""The KD layer that lets the student decide, Gorgun et al. 2023 (arXiv 2309.02843)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from .. import functional
from ..analysis import locations, subclasses
from ..analysis.vocabulary import vocabulary
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
from ..registry import register
from ._kd_layer import Assign, Match

PER_WORD = 39
"""Fewest locations per visual word; where the data has fewer there are fewer words."""


SAMPLE = 250
"""Images on which targets are looked at."""


@dataclass(frozen=True)
class LayerSite:
    """Where a KD layer sits: the units of both networks, their shapes, how the teacher's map is pooled."""

    name: str
    student_unit: str
    teacher_unit: str
    channels: int
    width: int
    factor: int
    alpha: float
    weight: float


class Settings(MethodSettings):
    penultimate: bool = Field(True, description="a KD layer before the pooling")
    intermediate: bool = Field(False, description="a KD layer after the first block of the last stage")
    alpha_penultimate: float = Field(1.0, ge=0, description="mixing factor; 0: scores alone, nothing is added")
    alpha_intermediate: float = Field(1.0, ge=0, description="as alpha_penultimate")
    weight_penultimate: float = Field(1.0, ge=0, description="weight of the matching term; 0: no supervision")
    weight_intermediate: float = Field(1.0, ge=0, description="as weight_penultimate")
    words: int = Field(4096, ge=2, description="visual words, the templates before the pooling")
    iterations: int = Field(20, ge=1, description="iterations of k-means that words are found in")
    inverse_temperature: float = Field(1.0, gt=0, description="factor on squared distances to the words")
    subclasses: int = Field(8, ge=1, description="sub-classes per class, the intermediate templates")
    dimensions: int = Field(60, ge=1, description="discriminants that sub-classes are found in")
    normalise_assignment: bool = Field(True, description="unit-norm assignments, as in the code")

    @model_validator(mode="after")
    def _has_a_layer(self) -> Self:
        if not (self.penultimate or self.intermediate):
            raise ValueError("penultimate or intermediate has to be true")
        return self


OF_QUEST = (
    "words by 20 iterations of k-means from random locations, as the code's faiss has them, sub-classes by"
    " scikit-learn's from a spread-out start; scores from the centres themselves, for the clusters' means",
    "fewer words where the data has less than 39 locations for each, and of 60 discriminants as many as there"
    " are, min(classes - 1, channels) at most; said under the table",
    "on networks outside the paper teacher maps are pooled by any whole factor",
)
"""Where letKD departs from its paper, or a reader would not expect it, and QuEST with it."""


@register
class LetKD1(Method[Settings]):
    """KD layer before the pooling: features match visual words of the teacher, and are enriched by what they match."""

    card = Card(
        name="letkd1",
        version=3,
        family="feature",
        title="letKD-1",
        paper="gorgun2023letkd",
        formula=(
            "L = CE(z_s, y) + weight * mean over locations KL(p_T || softmax(a)); a = g_T cos(x, T),"
            " x' = x + alpha * g_V cos(ReLU(BN(a)), V); p_T = softmax(-||f_t - word||²) before the pooling,"
            " at the first block of the last stage: row of the sub-classes' confusion, nearest of the label's own"
        ),
        source="adagorgun/letKD-framework @4fb2289 and its supplement",
        optimum="where the softmax of the student's scores equals the teacher's assignment",
        hard_labels="whose sub-classes locations are assigned to where intermediate is on",
        divergences=(
            "the supplement's algorithm 1 writes softmax(d) of distances; as in the code it is softmax(-d)",
            "the second convolution's input is normalised as in the code (setting normalise_assignment); the"
            " supplement's appendix argues for leaving it as it is",
            "the intermediate target uses the labels; the KD layers stay in the network that is deployed and counted",
            *OF_QUEST,
        ),
        recipe="cifar100-letkd",
        by_sample=True,
    )
    needs = Needs(student=("last_map",), teacher=("last_map",), min_batch=2, data=("num_samples",))

    sharpness: float | None = None
    words: Tensor
    projection: Tensor
    mean: Tensor
    centres: Tensor
    decisions: Tensor

    def setup(self) -> None:
        config, self.classes = self.settings, self.info.num_classes
        wanted = [self._site(name, self.student) for name in ("intermediate", "penultimate") if getattr(config, name)]
        self.sites = [site for site in wanted if site.alpha or site.weight]
        if len(self.sites) == 2:
            inner, outer = self.sites
            if inner.alpha and not outer.alpha and inner.student_unit == outer.student_unit:
                # The last stage is one block: what is pooled has been through the intermediate layer.
                self.sites[1] = replace(outer, student_unit=f"letkd_{inner.name}")
        self.matches, self.assigns = nn.ModuleDict(), nn.ModuleDict()
        for site in self.sites:
            if site.name == "penultimate":
                taught = self.info.num_samples if self.info.taught is None else self.info.taught
                count = taught * locations.count(self.teacher.shape(site.teacher_unit), site.factor)
                templates = max(2, min(config.words, count // PER_WORD))
                self.register_buffer("words", _stand_in(templates, site.width), persistent=False)
            else:
                templates = config.subclasses * self.info.num_classes
                self.dimensions = max(1, min(config.dimensions, self.info.num_classes - 1, site.width))
                self.register_buffer("projection", _stand_in(site.width, self.dimensions), persistent=False)
                self.register_buffer("mean", torch.zeros(site.width), persistent=False)
                shape = (self.info.num_classes, config.subclasses, self.dimensions)
                self.register_buffer("centres", _stand_in(*shape), persistent=False)
                self.register_buffer("decisions", torch.eye(templates), persistent=False)
            self.matches[site.name] = Match(site.channels, templates)
            if site.alpha:
                self.assigns[site.name] = Assign(site.channels, templates, site.alpha, config.normalise_assignment)
        supervised = tuple(site for site in self.sites if site.weight)
        self.needs = Needs(
            student_units=tuple(f"letkd_{site.name}_match" if site.alpha else site.student_unit for site in supervised),
            teacher_units=tuple(site.teacher_unit for site in supervised),
            min_batch=2,
            data=self.needs.data,
        )

    def _site(self, name: str, student: Network) -> LayerSite:
        student_unit, teacher_unit = (
            (network.layout.entry if name == "intermediate" else network.layout.last_map)
            for network in (student, self.teacher)
        )
        shapes = student.shape(student_unit), self.teacher.shape(teacher_unit)
        factor = locations.pooling(f"method '{self.card.name}'", *shapes)
        channels, width = (shape[0] if len(shape) == 3 else shape[-1] for shape in shapes)
        alpha, weight = (getattr(self.settings, f"{kind}_{name}") for kind in ("alpha", "weight"))
        return LayerSite(name, student_unit, teacher_unit, channels, width, factor, alpha, weight)

    def adapt(self, student: Network) -> Network:
        for site in self.sites:
            if site.alpha:
                # Where the last stage is one block both layers follow the same unit, the intermediate one first.
                unit = site.student_unit if site.name == "intermediate" else student.layout.last_map
                name = f"letkd_{site.name}"
                student = student.insert(unit, f"{name}_match", self.matches[site.name])
                student = student.insert(f"{name}_match", name, self.assigns[site.name])
        return student

    def prepares(self) -> bool:
        return any(site.weight for site in self.sites)

    def prepare(self, teacher_pass: TeacherPass) -> None:
        config = self.settings
        for site in self.sites:
            if site.weight and site.name == "penultimate":
                words = vocabulary(teacher_pass, site.teacher_unit, site.factor, len(self.words), config.iterations)
                self.words.copy_(words)
                self.sharpness = self._mean_largest_target(teacher_pass, site)
            elif site.weight:
                of_classes = subclasses.find(
                    teacher_pass, site.teacher_unit, site.factor, self.classes, config.subclasses, self.dimensions
                )
                for name, value in vars(of_classes).items():
                    getattr(self, name).copy_(value)

    def _mean_largest_target(self, teacher_pass: TeacherPass, site: LayerSite) -> float:
        """How near to one-hot the targets are, on a few images: the first thing to compare between implementations."""
        count, size = len(teacher_pass.labels), min(SAMPLE, len(teacher_pass.labels))
        few = torch.arange(size) * count // size  # of all classes, however they are ordered
        largest = [
            torch.softmax(-self.settings.inverse_temperature * torch.cdist(features, self.words).pow(2), 1).amax(1)
            for features, _ in locations.stream(teacher_pass, site.teacher_unit, site.factor, few)
        ]
        return float(torch.cat(largest).mean())

    def remarks(self) -> Sequence[str]:
        remarks = []
        if "penultimate" in self.matches and len(self.words) < self.settings.words:
            remarks.append(
                f"{len(self.words)} visual words instead of {self.settings.words}, {PER_WORD} locations each"
            )
        if self.sharpness is not None:
            remarks.append(f"mean largest target probability of a word {self.sharpness:.2f}")
        if "intermediate" in self.matches:
            discriminants = int(self.projection.any(0).sum())
            if discriminants < self.settings.dimensions:
                remarks.append(f"{discriminants} discriminants instead of {self.settings.dimensions}")
        return remarks

    def watched(self) -> Mapping[str, float]:
        """The scale g_T of each layer's scores."""
        return {f"g_T_{name}": match.scale.item() for name, match in self.matches.items() if isinstance(match, Match)}

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        result = Losses(task={"task": batch.loss(student.logits)})
        for site in self.sites:
            if not site.weight:
                continue
            features = locations.rows(teacher[site.teacher_unit], site.factor)
            scores = self._scores(site, student)
            if site.name == "penultimate":
                inverse = self.settings.inverse_temperature
                term = functional.word_matching(scores, features, self.words, inverse_temperature=inverse)
            else:
                term = functional.decision_matching(scores, self._decisions(features, batch.labels))
            result.distill[site.name] = site.weight * term
        return result

    def _scores(self, site: LayerSite, student: Outputs) -> Tensor:
        if site.alpha:
            return student[f"letkd_{site.name}_match"][1].flatten(0, -2)
        match = self.matches[site.name]
        assert isinstance(match, Match)
        return match.scores(student[site.student_unit]).flatten(0, -2)

    def _decisions(self, features: Tensor, labels: Tensor) -> Tensor:
        points = subclasses.project(features, self.projection, self.mean)
        labels = labels.repeat_interleave(len(points) // len(labels))
        return self.decisions[subclasses.nearest_of_class(points, labels, self.centres)]


def _stand_in(*shape: int) -> Tensor:
    """What the losses can be computed with until the method is prepared."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class LetKD2Settings(Settings):
    intermediate: bool = Field(True, description="a KD layer after the first block of the last stage")


@register
class LetKD2(LetKD1):
    """letKD-1 and a second KD layer after the first block of the last stage, taught the teacher's local decisions."""

    card = replace(LetKD1.card, name="letkd2", title="letKD-2")

    Settings = LetKD2Settings


class QuestSettings(Settings):
    alpha_penultimate: float = Field(0.0, ge=0, description="mixing factor; 0: scores alone, nothing is added")


@register
class Quest(LetKD1):
    """Scores against visual words of the teacher as a loss alone: letKD-1 with nothing added to the student."""

    card = replace(
        LetKD1.card,
        name="quest",
        title="QuEST",
        paper="jain2020quest",
        divergences=(
            "as letKD's code runs it (alpha 0): squared distances times 1; QuEST's own configurations multiply by 5",
            *OF_QUEST,
        ),
    )

    Settings = QuestSettings
