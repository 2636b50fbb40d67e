"""Protocols: how the cells of a table are trained and read, from tables/protocols/. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Unpack

from pydantic import Field, ValidationError, field_validator, model_validator

from kd_methods.errors import UserError
from kd_methods.strict import Strict

from ..common.console import counted
from ..common.files import complaint
from ..common.places import TABLES
from ..common.yaml_files import Misplaced, Shelf, load, read_yaml, where
from .deviations import shortest
from .protocol_fields import NOT_AS, OF_DETECTION, OF_IMAGES, OF_WHOLE_IMAGES, Changes, differing, extended
from .recipe import LARGEST, LONGEST, Answers, BelowOne, ByEpoch, Crops, Detection, Means, Mixing, Optimizer, Rate, Stds
from .schedules import SCHEDULES


class Protocol(Strict):
    """How every cell of a table is trained and read: data, recipe, and which published numbers it may stand beside.

    What is left at its default is no part of a cell's identity.
    """

    name: str = Field(description="its name; captions and the folders of tables have it")
    version: int = Field(ge=0, description="raised when what it says is mended: cells of another version are others")
    task: str = Field(
        description="name of the data set and what is learnt on it, unless a table's column or preset names another"
    )
    title: str = Field(default="", description="in a line, for lists")
    source: str = Field(default="", description="paper, script or repository that it is from")
    deviations: tuple[str, ...] = Field(
        default=(), description="what of it is not as the source has it; printed in every caption"
    )
    recipe: str = Field(
        default="", description="under which published settings and values belong to it; by default its name"
    )
    epochs: int = Field(ge=1, le=LONGEST, description="length of the training")
    recipe_epochs: int = Field(
        default=0,
        ge=0,
        le=LONGEST,
        description="length that milestones and warm-ups are written for, which move in proportion; by default epochs",
    )
    batch_size: int = Field(ge=1, le=LARGEST, description="samples of an update, of all processes together")
    drop_last: bool = Field(default=False, description="leave out an epoch's last batch where it is a rest")
    optimizer: Optimizer = Field(description="see below")
    lr_by_student: dict[str, Rate] = Field(
        default={}, description="learning rates of students that have another one, by network"
    )
    lr_alone: Rate | None = Field(
        default=None, description="learning rate of networks that learn without a teacher, teachers among them"
    )
    teachers_from: str = Field(
        default="", description="protocol under which teachers without a file are trained, where that is another one"
    )
    start: Literal["", "imagenet"] = Field(
        default="", description="imagenet: networks begin with installed ImageNet weights"
    )
    schedule: str = Field(
        default="steps", description="steps, onecycle, linear, cosine, cosine_by_epoch, steps_by_epoch, or a plugin's"
    )
    plan_dropped: bool = Field(
        default=False, description="onecycle is planned for batches that drop_last leaves out, too, and its end cut off"
    )
    warmup: BelowOne = Field(
        default=0.0, description="share of all steps over which the rate first rises; not of onecycle"
    )
    by_epoch: ByEpoch | None = Field(default=None, description="how cosine_by_epoch and steps_by_epoch move; see below")
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="of steps: epochs after which the rate is multiplied by decay"
    )
    decay: float = Field(default=0.1, gt=0, le=1, description="of steps: that factor")
    crop_padding: int = Field(
        default=0, ge=0, description="pixels added on each side, out of which an image's size is cut at random"
    )
    crop_fill: Literal["zeros", "reflect"] = Field(default="zeros", description="what is added")
    flip: bool = Field(default=False, description="left and right exchanged with probability 1/2")
    one_crop_per_batch: bool = Field(
        default=False, description="all images of a batch have one crop and flip, as in some public code"
    )
    rotation: float = Field(default=0.0, ge=0, le=180, description="degrees up to which each image is turned")
    crops: Crops | None = Field(default=None, description="of images that are decoded from files; see below")
    label_smoothing: BelowOne = Field(default=0.0, description="of the task's loss")
    mixing: Mixing | None = Field(
        default=None, description="images of a batch are mixed in pairs, and methods see soft labels; see below"
    )
    repeats: int = Field(
        default=1,
        ge=1,
        le=LARGEST,
        description="times that an image is in a batch, augmented anew; an epoch, as long as before, sees fewer images",
    )
    task_loss: Literal["ce", "bce"] = Field(
        default="ce", description="cross-entropy, or binary cross-entropy of every class, mean over batch and classes"
    )
    drop_path: BelowOne | None = Field(
        default=None,
        description="rate of stochastic depth with which timm builds students; by default each network's own",
    )
    ema: BelowOne = Field(
        default=0.0,
        description="share that averages of the weights, which are evaluated and saved, keep at each update; 0: none",
    )
    label_noise: BelowOne = Field(
        default=0.0, description="share of training labels that are exchanged for another class"
    )
    teacher_answers: Answers | None = Field(
        default=None, description="wrong, noisy or missing for a share of the images; see below"
    )
    stored_logits: bool = Field(
        default=False,
        description="methods get teacher's logits that were computed once, on another augmentation of each image",
    )
    second_view: Literal["", "randaugment"] = Field(
        default="",
        description="how the second view of each image is made, for methods that want one, on top of crop and flip",
    )
    mean: Means = Field(default=(), description="normalisation by channel, of images scaled to 0 to 1")
    std: Stds = Field(default=(), description="as mean")
    max_length: int = Field(
        default=0, ge=0, description="tokens after which texts are cut; with it the protocol is one of texts"
    )
    tokenizer: str = Field(default="", description="a folder or a name on the hub; by default the task's")
    holdout: int = Field(default=0, ge=0, description="training images that are tested on in place of the test set")
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        default="fp32",
        description="of networks, under autocast (gradients of fp16 are scaled); losses are fp32, but tf32 is of all",
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="parts of a batch whose gradients are summed; batch statistics and relational losses are of one",
    )
    world_size: int = Field(
        default=1,
        ge=1,
        description="processes that share every batch and make the same update, each with batch statistics of its own",
    )
    sync_bn: bool = Field(default=False, description="batch statistics are those of all processes' samples")
    compile: bool = Field(default=False, description="networks of images run compiled by torch")
    detection: Detection | None = Field(default=None, description="of detectors; see below")

    @field_validator("schedule")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return SCHEDULES.get(name).name
        except UserError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if len(self.mean) != len(self.std):
            raise Misplaced("mean and std belong together, one does not stand alone", "std" if self.mean else "mean")
        length = self.recipe_epochs or self.epochs
        if late := [milestone for milestone in self.milestones if milestone >= length]:
            message = f"{late[0]} is not within the recipe's {length} epochs (recipe_epochs)"
            raise Misplaced(message, "milestones", self.milestones.index(late[0]))
        if self.batch_size % self.accumulate:
            raise Misplaced(f"a batch of {self.batch_size} has no {self.accumulate} parts of one size", "accumulate")
        if self.batch_size % (self.accumulate * self.world_size):
            message = f"a batch of {self.batch_size} is not shared evenly by {self.world_size} processes"
            raise Misplaced(message, "world_size")
        if self.world_size > 1 and (self.crops or self.teacher_answers):
            raise Misplaced("processes share what lies on the device, without crops or teacher_answers", "world_size")
        if self.sync_bn and not self.detection and (self.world_size == 1 or self.compile):
            raise Misplaced("for several processes (world_size, --processes), without compile", "sync_bn")
        if self.schedule == "onecycle" and self.optimizer.name == "dot":
            raise Misplaced("one cycle moves the momentum, and dot has two", "optimizer")
        if bool(self.by_epoch) != SCHEDULES.get(self.schedule).by_epoch or (self.by_epoch and self.warmup):
            raise Misplaced("by_epoch belongs to the schedules *_by_epoch, which have no other warmup", "by_epoch")
        if self.warmup and self.schedule == "onecycle":
            raise Misplaced("one cycle rises by itself", "warmup")
        if self.plan_dropped and not (self.schedule == "onecycle" and self.drop_last):
            raise Misplaced("for schedule onecycle with drop_last", "plan_dropped")
        if self.precision == "fp16" and self.optimizer.name == "dot":
            raise Misplaced("dot has two kinds of gradients, which are not scaled for fp16; use bf16", "optimizer")
        for name in ("stored_logits", "teacher_answers"):
            if getattr(self, name) and (self.crops or self.max_length):
                raise Misplaced("for images that lie on the device, without crops or max_length", name)
            if getattr(self, name) and self.mixing:
                raise Misplaced(f"{name} are those of single images, and mixing makes others", "mixing")
        if self.teacher_answers and (self.stored_logits or self.second_view):
            raise Misplaced("not beside stored_logits or second_view", "teacher_answers")
        for given, unread, words in (
            (self.max_length, OF_IMAGES, "for images, without max_length"),
            (self.crops, OF_WHOLE_IMAGES, "for images that lie on the device, without crops"),
            (not self.max_length, ("tokenizer",), "for texts, with max_length"),
        ):
            for name in unread:
                if given and getattr(self, name) != type(self).model_fields[name].default:
                    raise Misplaced(words, name)
        if self.detection:
            self._check_detection(self.detection)
        return self

    def _check_detection(self, detection: Detection) -> None:
        if unread := sorted(set(self.model_dump(exclude_defaults=True)) - OF_DETECTION):
            raise Misplaced(f"not for detection: {', '.join(unread)}", unread[0])
        if self.optimizer.name != "sgd" or self.optimizer.decay_matrices_only or self.optimizer.backbone != 1:
            message = "detection has the optimizer sgd, with one rate for all, which decays every parameter"
            raise Misplaced(message, "optimizer")
        if self.batch_size % detection.processes:
            message = f"a batch of {self.batch_size} is not shared evenly by {detection.processes} processes"
            raise Misplaced(message, "detection", "processes")

    def model_post_init(self, _: Any) -> None:
        object.__setattr__(self, "recipe", self.recipe or self.name)
        object.__setattr__(self, "recipe_epochs", self.recipe_epochs or self.epochs)

    def identity(self) -> dict[str, Any]:
        """What makes two protocols different, as far as a cell does not say it itself (task and learning rate).

        What is left at its default is left out, so that a field added later leaves the identity of old cells alone.
        """
        elsewhere = {"task", "lr_by_student", "lr_alone", "teachers_from", "start"}
        left_out = {*elsewhere, "title", "source", "deviations", "recipe"}
        values = self.model_dump(mode="json", exclude=left_out, exclude_defaults=True)
        values["optimizer"].pop("lr")
        for name in ("crops", "detection"):
            values.get(name, {}).pop("workers", None)
        if self.crops and self.crops.auto_augment and self.crops.interpolation != "random":
            values["crops"]["auto_augment"] += self.crops.RESAMPLED
        return values

    def side(self, usual: int) -> int:
        """Pixels of a side of images as networks see them, where those of the task have ``usual``."""
        return self.crops.size if self.crops else usual

    def on_task(self, task: str) -> Protocol:
        """This protocol on another task, or as it is where none is named."""
        return self.model_copy(update={"task": task}) if task else self

    def lr(self, student: str, taught: bool = True) -> float:
        """The learning rate with which a student starts."""
        if self.lr_alone and not taught:
            return self.lr_alone
        return self.lr_by_student.get(student, self.optimizer.lr)

    def for_teachers(self, changes: Changes) -> Protocol:
        """The protocol under which teachers are trained that have no file, once this one is ``changed``.

        In another length as much longer or shorter; images that are held out here are so there.
        """
        if not self.teachers_from:
            return self.changed(**changes)
        teacher_protocol, epochs, wanted = load_protocol(self.teachers_from), changes.get("epochs"), changes.copy()
        wanted["epochs"] = epochs and max(1, round(teacher_protocol.epochs * epochs / self.epochs))
        wanted["holdout"] = changes.get("holdout") or self.holdout or None
        return teacher_protocol.changed(**wanted)

    def lr_at(self, epoch: int, done: int = 0, total: int = 1) -> tuple[float, float | None]:
        """Factor on the learning rate, and the momentum where it moves, in an epoch after ``done`` of ``total`` steps.

        Raises:
            UserError: no such schedule.
        """
        return SCHEDULES.get(self.schedule).at(self, epoch, done, total)

    @property
    def processes(self) -> int:
        """How many processes share each batch."""
        return self.detection.processes if self.detection else self.world_size

    def of_one_process(self) -> Protocol:
        """What one of the processes that share a batch computes, alone."""
        alone = {"batch_size": self.batch_size // self.world_size, "world_size": 1, "sync_bn": False}
        return self.model_copy(update=alone)

    @property
    def part_size(self) -> int:
        """How many samples of a batch go through a network together."""
        return self.batch_size // (self.accumulate * self.processes)

    def steps_on(self, trained: int) -> int:
        """Optimisation steps of one epoch on so many samples that are trained on."""
        if self.detection:
            return self.detection.iterations
        return trained // self.batch_size if self.drop_last else math.ceil(trained / self.batch_size)

    @property
    def views(self) -> int:
        """How many views of each image a method can have."""
        return 2 if self.second_view else 1

    def epochs_of(self, recipe_epochs: float) -> int:
        """How many epochs of this run, one at least, stand for that many of the recipe."""
        return max(1, round(recipe_epochs * self.epochs / self.recipe_epochs))

    def milestones_in(self, iterations: int) -> list[int]:
        """The milestones in steps, where an epoch of this run has so many."""
        return [round(milestone * self.epochs * iterations / self.recipe_epochs) for milestone in self.milestones]

    def with_optimizer(self, changes: Mapping[str, Any]) -> Protocol:
        """This protocol with some of the optimiser's settings changed.

        Raises:
            UserError: they do not fit this protocol's other settings.
        """
        if not changes:
            return self
        optimizer = {**self.optimizer.model_dump(), **changes}
        return self._with({"optimizer": optimizer}, f"optimizer {dict(changes)} under protocol {self.name}")

    def _with(self, update: Mapping[str, Any], what: str) -> Protocol:
        try:
            return Protocol.model_validate({**self.model_dump(), **update})
        except ValidationError as error:
            place, message = complaint(error)
            raise UserError(f"{what}: {'.'.join(map(str, place))}: {message}") from None

    def recipe_epoch(self, epoch: float) -> float:
        """Where ``epoch`` of this run lies in the recipe's own epochs."""
        return epoch * self.recipe_epochs / self.epochs

    def changed(self, **changes: Unpack[Changes]) -> Protocol:
        """This protocol with another length or precision, or tested on ``holdout`` training images left out.

        Every change that makes other numbers is listed among the deviations.

        Raises:
            UserError: a value that does not fit.
        """
        epochs, holdout, precision = changes.get("epochs"), changes.get("holdout"), changes.get("precision")
        accumulate, processes = changes.get("accumulate"), changes.get("processes")
        update: dict[str, Any] = {}
        deviations = list(self.deviations)
        if epochs is not None and epochs != self.epochs:
            if epochs < 1:
                raise UserError(f"--epochs {epochs}: give at least 1")
            update["epochs"] = epochs
            scaled = ", milestones scaled" if self.milestones and SCHEDULES.get(self.schedule).decays else ""
            deviations.append(f"{counted(epochs, 'epoch')} instead of {self.epochs}{scaled}")
        if precision and precision != self.precision:
            update["precision"] = precision
            deviations.append(f"{precision} instead of {self.precision}")
        if accumulate and accumulate != self.accumulate:
            update["accumulate"] = accumulate
            deviations.append(f"each batch in {accumulate} parts, whose gradients are summed")
        if processes and processes != self.processes:
            of_detection = self.detection and {**self.detection.model_dump(), "processes": processes}
            update |= {"detection": of_detection} if of_detection else {"world_size": processes}
            deviations.append(f"each batch on {processes} processes, whose gradients are averaged")
        if changes.get("sync_bn") and not self.sync_bn:
            update["sync_bn"] = True
            deviations.append("batch statistics of all processes together")
        if changes.get("compile") and not self.compile:
            update["compile"] = True
            deviations.append("networks compiled by torch")
        if holdout == 0 and self.holdout:
            raise UserError(f"--holdout 0: protocol {self.name} holds out {self.holdout} images; take another protocol")
        if holdout and holdout != self.holdout:
            update["holdout"] = holdout
            deviations.append(f"tested on {holdout} held-out training images, which are not trained on")
        if not update:
            return self
        changed = self._with({**update, "deviations": shortest(deviations)}, f"protocol {self.name}")
        by_key = any(text.startswith(NOT_AS) for text in self.deviations)
        return _beside_its_recipe(changed) if by_key else changed


PROTOCOLS = Shelf("protocol", TABLES / "protocols", "**/*.yaml")


def protocol_names() -> list[str]:
    """The protocols that ship with the suite."""
    return PROTOCOLS.names()


def load_protocol(name: str) -> Protocol:
    """A protocol by name, or by the path of a YAML file of one's own.

    Raises:
        UserError: no such protocol, its YAML is malformed, or a user's has a name of the suite's (file and line are
            named).
    """
    protocol, path = load(Protocol, name, PROTOCOLS, extended)
    if protocol.teachers_from:
        teachers_from = PROTOCOLS.named(protocol.teachers_from, path, "teachers_from")
        protocol = protocol.model_copy(update={"teachers_from": teachers_from})
    if PROTOCOLS.holds(path):
        return protocol
    if protocol.name in PROTOCOLS.files:
        place = where(path, "name")
        raise UserError(f"{place}: '{protocol.name}' is a protocol of the suite; give this one a name of its own")
    in_words = protocol.recipe not in PROTOCOLS.files or "deviations" in read_yaml(path)
    return protocol if in_words else _beside_its_recipe(protocol)


def _beside_its_recipe(protocol: Protocol) -> Protocol:
    """A user's protocol that takes over a recipe of the suite, with what differs from it as a deviation, by key."""
    theirs = load_protocol(protocol.recipe)
    other = differing(theirs.model_dump(), protocol.model_dump())
    by_key = (f"{NOT_AS} {protocol.recipe}: {', '.join(other)}",) if other else ()
    return protocol.model_copy(update={"deviations": (*theirs.deviations, *by_key)})


def steps_per_epoch(samples: int, protocol: Protocol) -> int:
    """Optimisation steps of one epoch on a training set of so many samples, of which some may be held out."""
    return protocol.steps_on(samples - protocol.holdout)
