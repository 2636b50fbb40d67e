"""Who a method is, and what it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError
from .batch import DataInfo
from .features import Layout, Modality

Family = Literal["logit", "feature", "relation", "blockwise"]


@dataclass(frozen=True)
class Needs:
    """What a method reads. The loop keeps the union over a group and nothing else.

    student, teacher  fields of :class:`Layout`; for the teacher also ``"logits"``. Where no method of a group lists
                      anything for the teacher, its pass is left out
    student_units, teacher_units  single units by name
    min_batch         smallest batch the losses are defined for; smaller last batches are left out of training
    max_batch         largest batch they are defined for, or 0
    views             2 to see a second, differently augmented view of every image (``outputs.second``)
    data              what of the training set has to be known: its ``"num_samples"``, its ``"labels"``, and of a batch
                      the samples' ``"indices"`` in it
    """

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    student_units: tuple[str, ...] = ()
    teacher_units: tuple[str, ...] = ()
    min_batch: int = 1
    max_batch: int = 0
    views: int = 1
    data: tuple[str, ...] = ()

    def joined(self, other: Needs) -> Needs:
        """What both need."""
        fields = {
            name: tuple(dict.fromkeys((*getattr(self, name), *getattr(other, name))))
            for name in ("student", "teacher", "student_units", "teacher_units", "data")
        }
        limits = [limit for limit in (self.max_batch, other.max_batch) if limit]
        return Needs(
            **fields,
            min_batch=max(self.min_batch, other.min_batch),
            max_batch=min(limits, default=0),
            views=max(self.views, other.views),
        )


@dataclass(frozen=True)
class Card:
    """Who a method is: shown by ``show method``, printed in tables, part of a cell's identity (name and version).

    title       as printed in tables                    paper    key in tables/references.bib
    formula     the loss, in plain text                 source   where the default settings come from
    family      what the distillation terms compare: logits, features, relations between features, or logits that the
                teacher's remaining blocks make of the student's features (block-wise)
    modality    what the networks read, or "any" for all networks that have the features which are read
    detectors   whether they are detectors, too, where the modality is "any": not where the task loss is changed or a
                teacher made of labels, which are those of an input and not of the regions that are found in it
    optimum     "identity" if the distillation terms have zero gradient where student and teacher agree; else say where;
                None where there are no such terms
    order       why the losses depend on the order of the samples within a batch; empty if they do not
    hard_labels what the terms need one class of each image for; empty where they take soft labels or none. Of a mixed
                image it is the class with the larger share
    divergences where paper, reference code and this implementation differ
    our_choice  settings whose published value is unknown: chosen by us, and marked as such wherever they show
    recipe      the protocol that the method brings along, if it does; then it is no row of tables under another one
    classes     the least number of classes; 1 where a regression will do
    batch       which samples the losses see where several processes share a batch: ``"local"``, each process's own,
                which is enough for means over samples; ``"global"``, all of them, for terms that relate samples, are
                means over something else, or draw random numbers for each sample
    waits       why the host waits for the device in a training step; empty if it does not
    by_sample   whether every distillation term is a mean over samples, each one's part its own, and nothing of them is
                kept; only then can some samples do without the teacher's answer
    """

    name: str
    version: int
    family: Family
    title: str
    paper: str = ""
    formula: str = ""
    source: str = ""
    optimum: str | None = "identity"
    order: str = ""
    hard_labels: str = ""
    divergences: tuple[str, ...] = ()
    our_choice: tuple[str, ...] = ()
    recipe: str = ""
    modality: Modality | Literal["any"] = "images"
    classes: int = 2
    batch: Literal["local", "global"] = "local"
    waits: str = ""
    by_sample: bool = False
    detectors: bool = True

    @property
    def distills(self) -> bool:
        """Whether there are distillation terms at all."""
        return self.optimum is not None

    def check(self, needs: Needs, student: Layout, info: DataInfo) -> None:
        """Raise UserError where the method is not made for what the student reads, or for the number of classes."""
        if self.modality not in ("any", student.modality):
            raise UserError(f"method '{self.name}' is made for {self.modality}, not for {student.modality}")
        if not self.detectors and student.modality == "detection":
            raise UserError(f"method '{self.name}' is made for one label of every input, not for detection")
        if absent := student.absent((*needs.student, *needs.teacher)):
            networks = f"networks for {student.modality}"
            raise UserError(f"method '{self.name}' reads {', '.join(absent)}, which {networks} lack")
        if "logits" in needs.teacher and not student.softmax:
            raise UserError(f"method '{self.name}' compares probabilities of a softmax; this student has sigmoids")
        if "labels" in needs.data and info.labels is None:
            raise UserError(f"method '{self.name}' needs the training set's labels")
        if info.num_classes < self.classes:
            task = "a regression" if info.regression else f"{info.num_classes} classes"
            least = f", but for {self.classes} classes at least" if self.classes > 2 else ""
            raise UserError(f"method '{self.name}' is not made for {task}{least}")
