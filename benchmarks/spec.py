"""What is written in tables/: protocols and tables, read from YAML and validated. Imports no torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kd_methods.errors import UserError, unknown
from kd_methods.registry import FAMILIES, index

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "tables"

Model = TypeVar("Model", bound=BaseModel)

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # five times as fast, where PyYAML was built with it


class Strict(BaseModel):
    """Unknown keys are errors; values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Optimizer(Strict):
    """Stochastic gradient descent; weight decay on every parameter, as the field's recipes for images have it.

    ``decay_matrices_only`` leaves biases and normalisations out of the decay. ``clip`` is the largest norm of all
    gradients of a step together; 0 for no limit. ``dot`` is the distillation-oriented trainer: task terms have momentum
    - delta, distillation terms momentum + delta.
    ``adamw`` has ``momentum`` as its first beta, and its weight decay apart from the gradient.
    """

    name: Literal["sgd", "dot", "adamw"] = "sgd"
    lr: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = 0.0
    delta: float = Field(default=0.0, ge=0)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    clip: float = Field(default=0.0, ge=0)
    decay_matrices_only: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Optimizer:
        if self.name == "dot" and (self.clip or self.decay_matrices_only):
            raise ValueError("dot has no clip and decays every parameter")
        if self.name != "dot" and self.delta:
            raise ValueError("delta is a setting of the optimiser dot")
        if self.name != "adamw" and self.beta2 != 0.999:
            raise ValueError("beta2 is a setting of the optimiser adamw")
        if self.name == "adamw" and self.nesterov:
            raise ValueError("adamw has no nesterov")
        if self.name == "dot" and (self.nesterov or not self.delta or self.momentum + self.delta >= 1):
            raise ValueError("dot needs delta > 0 with momentum + delta < 1, and no nesterov")
        return self

    def line(self) -> str:
        """In words, without the learning rate."""
        decay = f"weight decay {self.weight_decay:g}" + " of matrices only" * self.decay_matrices_only
        decay += f", gradients clipped at {self.clip:g}" if self.clip else ""
        if self.name == "adamw":
            return f"AdamW, beta2 {self.beta2:g}, {decay}"
        kind = {"sgd": "SGD", "dot": f"DOT, delta {self.delta:g}"}[self.name]
        nesterov = " (Nesterov)" if self.nesterov else ""
        return f"{kind}, momentum {self.momentum:g}{nesterov}, {decay}"


class Detection(Strict):
    """What a protocol of detection has beyond the others. Its epochs are stretches of ``iterations``, each evaluated.

    short_sides   of them one is drawn for every training image, in pixels; its long side is at most ``long_side``
    test_side     the short side in evaluation
    warmup        iterations over which the learning rate rises linearly, from a thousandth
    pretrained    students begin with a backbone trained on ImageNet; without, no stage is frozen
    workers       processes that load images
    """

    iterations: int = Field(ge=1)
    short_sides: tuple[int, ...] = Field(min_length=1)
    long_side: int = Field(ge=1)
    test_side: int = Field(ge=1)
    warmup: int = Field(default=0, ge=0)
    pretrained: bool = True
    workers: int = Field(default=0, ge=0)


class Crops(Strict):
    """How images that are decoded from files, in ``workers`` processes, become inputs of one size.

    In training a random part of the image, its area within ``scale`` of the whole, is resized to ``size``; in
    evaluation the short side is resized to ``test_resize`` and the middle cut out. ``auto_augment`` is as timm's
    ``create_transform`` has it (``rand-m9-mstd0.5-inc1``), ``color_jitter`` the range of brightness, contrast and
    saturation (not used beside ``auto_augment``, as in timm), ``erase`` the probability that a random part is erased.
    """

    size: int = Field(default=224, ge=1)
    scale: tuple[float, float] = (0.08, 1.0)
    test_resize: int = Field(default=256, ge=1)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    color_jitter: float = Field(default=0.0, ge=0)
    auto_augment: str = ""
    erase: float = Field(default=0.0, ge=0, le=1)
    workers: int = Field(default=8, ge=0)

    def line(self) -> str:
        """In words, without the flip."""
        more = f", colour jitter {self.color_jitter:g}" if self.color_jitter and not self.auto_augment else ""
        more += f", {self.auto_augment}" if self.auto_augment else ""
        more += f", random erasing {self.erase:g}" if self.erase else ""
        low, high = self.scale
        return (
            f"random resized crop {self.size} (area {low:g} to {high:g}, {self.interpolation}){more}, "
            f"in evaluation short side {self.test_resize}, centre crop {self.size}"
        )


class Protocol(Strict):
    """How every cell of a table is trained and read: data, recipe, and which published numbers it may stand beside.

    ``recipe_epochs`` is the length that the recipe was written for; milestones and the methods' warm-ups are in its
    epochs, and a run with another ``epochs`` passes through them in proportion. ``second_view`` is how the second view
    of each image is made for the methods that want one, on top of crop and flip. ``one_crop_per_batch`` gives all
    of a batch one crop and flip. ``label_noise`` is the share of training labels that are exchanged for another class.
    ``schedule``: the learning rate falls at the milestones, rises and falls once (one cycle, which also moves the
    momentum), or rises linearly over the share ``warmup`` of all steps and then falls to zero, ``linear`` or by half a
    ``cosine``. ``rotation`` turns each image by up to so many degrees. ``label_smoothing`` is that of the task's loss.

    ``precision``: networks compute under autocast in bf16 or fp16 (whose gradients are scaled), or with TF32 products;
    losses are fp32. ``accumulate``: a batch is processed in so many parts whose gradients are summed; batch statistics
    and losses that relate samples are those of a part. ``compile``: networks run compiled.

    Texts are cut after ``max_length`` tokens; ``tokenizer`` is a folder or a name on the hub, by default the task's.
    """

    name: str
    version: int
    task: str
    title: str = ""
    source: str = ""
    deviations: tuple[str, ...] = ()
    recipe: str = ""
    epochs: int = Field(ge=1)
    recipe_epochs: int = 0
    batch_size: int = Field(ge=1)
    drop_last: bool = False
    optimizer: Optimizer
    lr_by_student: dict[str, float] = {}
    schedule: Literal["steps", "onecycle", "linear", "cosine"] = "steps"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    crop_padding: int = 0
    crop_fill: Literal["zeros", "reflect"] = "zeros"
    flip: bool = False
    one_crop_per_batch: bool = False
    rotation: float = Field(default=0.0, ge=0, le=180)
    crops: Crops | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    label_noise: float = Field(default=0.0, ge=0, lt=1)
    second_view: Literal["", "randaugment"] = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    max_length: int = Field(default=0, ge=0)
    tokenizer: str = ""
    holdout: int = Field(default=0, ge=0)
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    accumulate: int = Field(default=1, ge=1)
    compile: bool = False
    detection: Detection | None = None

    @model_validator(mode="after")
    def _parts(self) -> Protocol:
        if self.batch_size % self.accumulate:
            raise ValueError(f"a batch of {self.batch_size} has no {self.accumulate} parts of one size")
        if self.accumulate > 1 and self.optimizer.name == "dot":
            raise ValueError("dot has two kinds of gradients, which are not accumulated")
        return self

    def model_post_init(self, _: Any) -> None:
        object.__setattr__(self, "recipe", self.recipe or self.name)
        object.__setattr__(self, "recipe_epochs", self.recipe_epochs or self.epochs)

    def identity(self) -> dict[str, Any]:
        """What makes two protocols different, as far as a cell does not say it itself (task and learning rate).

        What is left at its default is left out, so that a field added later leaves the identity of old cells alone.
        """
        own = {"task", "lr_by_student", "title", "source", "deviations", "recipe"}
        values = self.model_dump(mode="json", exclude=own, exclude_defaults=True)
        values["optimizer"].pop("lr")
        values.get("crops", {}).pop("workers", None)
        return values

    def lr(self, student: str) -> float:
        """The learning rate with which a student starts."""
        return self.lr_by_student.get(student, self.optimizer.lr)

    def pace(self, epoch: int, done: int = 0, total: int = 1) -> tuple[float, float | None]:
        """Factor on the learning rate, and the momentum where it moves, after ``done`` of ``total`` steps.

        With milestones the factor is that of the epoch, counted from 1, and constant within it.
        """
        if self.schedule == "onecycle":
            return one_cycle(done, total)
        if self.schedule in ("linear", "cosine"):
            rising = self.warmup * total
            left = (total - done) / (total - rising)
            falling = left if self.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
            return (done / rising if done < rising else falling), None
        passed = sum(self.recipe_epoch(epoch - 1) >= milestone for milestone in self.milestones)
        return self.decay**passed, None

    @property
    def arithmetic(self) -> str:
        """Precision, accumulation and compilation in words."""
        compiled = ", compiled" if self.compile else ""
        if self.accumulate == 1:
            return f"{self.precision}{compiled}"
        size = self.batch_size // self.accumulate
        parts = f"each batch in {self.accumulate} parts (batch statistics and relations are those of {size} samples)"
        return f"{self.precision}, {parts}{compiled}"

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
        try:
            optimizer = Optimizer(**{**self.optimizer.model_dump(), **changes})
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"optimizer {dict(changes)} under protocol {self.name}: {message}") from None
        if self.schedule == "onecycle" and optimizer.name == "dot":
            raise UserError(f"optimizer dot under protocol {self.name}: one cycle moves the momentum, dot has two")
        return self.model_copy(update={"optimizer": optimizer})

    def recipe_epoch(self, epoch: float) -> float:
        """Where ``epoch`` of this run lies in the recipe's own epochs."""
        return epoch * self.recipe_epochs / self.epochs

    def changed(
        self,
        epochs: int | None = None,
        holdout: int | None = None,
        precision: str | None = None,
        accumulate: int | None = None,
    ) -> Protocol:
        """This protocol with another length or precision, or tested on ``holdout`` training images left out.

        Raises:
            UserError: a value that does not fit.
        """
        update: dict[str, Any] = {}
        deviations = list(self.deviations)
        if epochs is not None and epochs != self.epochs:
            if epochs < 1:
                raise UserError(f"--epochs {epochs}: give at least 1")
            update["epochs"] = epochs
            deviations.append(f"{_epochs(epochs)} instead of {self.epochs}, milestones scaled")
        if holdout and self.detection:
            raise UserError("--holdout is not for detection")
        if self.detection and (precision or accumulate):
            raise UserError("--precision and --accumulate are not for detection")
        if precision and precision != self.precision:
            update["precision"] = precision
            deviations.append(f"{precision} instead of {self.precision}")
        if accumulate and accumulate != self.accumulate:
            update["accumulate"] = accumulate
            deviations.append(f"each batch in {accumulate} parts, whose gradients are summed")
        if holdout:
            update["holdout"] = holdout
            deviations.append(f"tested on {holdout} held-out training images, which are not trained on")
        if not update:
            return self
        changed = self.model_copy(update={**update, "deviations": tuple(deviations)})
        try:
            Protocol.model_validate(changed.model_dump())
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"protocol {self.name}: {message}") from None
        return changed

    def lines(self, students: Collection[str] | None = None, with_task: bool = True) -> tuple[str, ...]:
        """The protocol in words, printed under every table; learning rates of ``students`` only, where given.

        Without the task, where columns say which they are on.
        """
        if self.detection:
            return self._detection_lines(self.detection, with_task)
        where = f" on {self.task}" if with_task else ""
        after = sorted({math.ceil(milestone * self.epochs / self.recipe_epochs) for milestone in self.milestones})
        decays = ", ".join(str(epoch) for epoch in after if epoch < self.epochs)
        special = {n: lr for n, lr in self.lr_by_student.items() if students is None or n in students}
        rates = f"lr {self.optimizer.lr:g}" + "".join(f", {lr:g} for {net}" for net, lr in special.items())
        fill = " (reflected)" if self.crop_fill == "reflect" else ""
        crop = f"random crop with padding {self.crop_padding}{fill}" if self.crop_padding else "no crop"
        crop += " (the same for a whole batch)" if self.one_crop_per_batch else ""
        crop = self.crops.line() if self.crops else crop
        turn = f", random rotation by up to {self.rotation:g} degrees" if self.rotation else ""
        smooth = f", label smoothing {self.label_smoothing:g}" if self.label_smoothing else ""
        noise = f", {self.label_noise:.0%} of the training labels exchanged" if self.label_noise else ""
        last = ", last incomplete batch dropped" if self.drop_last else ""
        second = f", second view by {self.second_view} for methods that want one" if self.second_view else ""
        falls = self.schedule in ("linear", "cosine")
        data = f"{crop}{turn}{', horizontal flip' if self.flip else ''}{second}{noise}{smooth}"
        if self.max_length:
            data = f"at most {self.max_length} tokens, batches of texts of similar length"
            data += f", tokenizer {self.tokenizer}" if self.tokenizer else ""
        return (
            f"{self.name} v{self.version}{where}: {_epochs(self.epochs)}, batch {self.batch_size}{last}",
            f"{self.optimizer.line()}, {rates}"
            + (f", times {self.decay:g} after epochs {decays}" if decays else "")
            + (" at the peak of one cycle, momentum 0.95 to 0.85 and back" if self.schedule == "onecycle" else "")
            + (f", {self.schedule} decay after a warm-up over {self.warmup:.0%} of the steps" * falls),
            f"{data}, {self.arithmetic}",
        )

    def _detection_lines(self, own: Detection, with_task: bool) -> tuple[str, ...]:
        where = f" on {self.task}" if with_task else ""
        total, after = self.epochs * own.iterations, self.milestones_in(own.iterations)
        decays = f", times {self.decay:g} after {', '.join(map(str, after))} iterations" if after else ""
        rise = f", linear warm-up over {own.warmup} iterations" if own.warmup else ""
        low, high = min(own.short_sides), max(own.short_sides)
        sides = f"{low}" if low == high else f"{low} to {high} ({len(own.short_sides)} sizes)"
        start = "backbones of students begin with weights of ImageNet"
        start = start if own.pretrained else "students begin with random weights"
        return (
            f"{self.name} v{self.version}{where}: {total} iterations, batch {self.batch_size}",
            f"{self.optimizer.line()}, lr {self.optimizer.lr:g}{decays}{rise}",
            f"short side {sides}, long side at most {own.long_side}, short side {own.test_side} in evaluation"
            f"{', horizontal flip' if self.flip else ''}, fp32; {start}",
        )


def one_cycle(done: int, total: int) -> tuple[float, float]:
    """Factor on the peak learning rate, and momentum, after ``done`` of ``total`` steps: torch's OneCycleLR.

    By cosines from 1/25 to 1 over the first 30 % and on to 1/250,000; the momentum from 0.95 to 0.85 and back.
    """
    top, end = 0.3 * total - 1, total - 1
    rising = done <= top
    way = done / top if rising and top > 0 else (done - top) / max(1, end - top)
    there = (1 - math.cos(math.pi * min(way, 1.0))) / 2
    low, momentum = (1 / 25, (0.95, 0.85)) if rising else (1 / 25e4, (0.85, 0.95))
    factor = low + (1 - low) * (there if rising else 1 - there)
    return factor, momentum[0] + (momentum[1] - momentum[0]) * there


def _epochs(count: int) -> str:
    return f"{count} epoch" + "s" * (count != 1)


Init = Literal["", "first", "last", "spread", "heads"]


class Pair(Strict):
    """A column: teacher and student by network name.

    ``task`` is the protocol's unless the column has its own, ``metric`` the task's own. With ``init`` the student
    starts from its teacher's weights: an encoder from some of its layers, the ``first``, the ``last``, or those at
    equal shares (``spread``), a detector from its neck and ``heads``.
    """

    id: str
    teacher: str
    student: str
    task: str = ""
    metric: str = ""
    init: Init = ""


class TaskColumn(Strict):
    """A task that every pair of a table has a column for, and the metric to show."""

    task: str
    metric: str = ""

    @property
    def label(self) -> str:
        """What tells this column of a pair from its others."""
        return self.task.rpartition("/")[2] + (f".{self.metric}" if self.metric else "")


class Row(Strict):
    """A method as a row; ``id`` differs from ``method`` where a table shows a method twice.

    ``optimizer`` changes the protocol's optimiser for this row; ``published`` names the row of the published values
    that this one repeats, where that is not the method's own; ``student`` a network to train in place of the column's;
    ``init`` is as in :class:`Pair`, for this row alone.
    """

    id: str
    method: str
    title: str = ""
    settings: dict[str, Any] = {}
    optimizer: dict[str, Any] = {}
    published: str = ""
    student: str = ""
    init: Init = ""

    @field_validator("optimizer")
    @classmethod
    def _optimizer(cls, value: dict[str, Any]) -> dict[str, Any]:
        if other := set(value) - (set(Optimizer.model_fields) - {"lr"}):
            raise ValueError(f"{', '.join(sorted(other))} is no setting of a row's optimiser")
        return value


class Matrix(Strict):
    """Rows and columns as they are written in YAML; what a table and its presets have in common."""

    @field_validator("pairs", mode="before", check_fields=False)
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        return _read_pairs(value)

    @field_validator("methods", mode="before", check_fields=False)
    @classmethod
    def _methods(cls, value: Any) -> Any:
        return _read_rows(value)

    @field_validator("tasks", mode="before", check_fields=False)
    @classmethod
    def _tasks(cls, value: Any) -> Any:
        """Tasks may be written by name alone."""
        return tuple({"task": t} if isinstance(t, str) else t for t in value) if isinstance(value, list) else value

    @field_validator("methods", check_fields=False)
    @classmethod
    def _all_methods(cls, value: Any) -> Any:
        return value and _expanded(value)


class Preset(Matrix):
    """A named way to run a table. What it does not set is the table's."""

    protocol: str
    seeds: tuple[int, ...]
    title: str = ""
    pairs: tuple[Pair, ...] | None = None
    methods: tuple[Row, ...] | None = None
    task: str | None = None
    tasks: tuple[TaskColumn, ...] | None = None
    notes: tuple[str, ...] = ()


METRICS = {
    "top1": "Top-1 accuracy (%)",
    "top5": "Top-5 accuracy (%)",
    "accuracy": "Accuracy (%)",
    "accuracy_mm": "Accuracy (%), mismatched",
    "mcc": "Matthews correlation (x100)",
    "f1": "F1 (%)",
    "pearson": "Pearson correlation (x100)",
    "spearman": "Spearman correlation (x100)",
    "mAP": "AP of boxes (%)",
    "AP50": "AP at IoU 0.5 (%)",
    "AP75": "AP at IoU 0.75 (%)",
    "APs": "AP of small objects (%)",
    "APm": "AP of medium objects (%)",
    "APl": "AP of large objects (%)",
}
"""How tables call a metric."""


class Efficiency(Strict):
    """Which row's average relative improvement (ARI) is told, and against which rows."""

    row: str
    against: tuple[str, ...]


class TableSpec(Matrix):
    """One YAML of tables/: rows x columns of cells, and what is published for each.

    ``metric`` is shown unless a column names its own; by default the task's. With ``tasks`` every pair has a column for
    each, and one for their mean. ``extra`` is the optional part of the suite
    that the table needs. With ``efficiency`` a second table gives the epochs that each row takes to the plain student's
    best, and how far one row is ahead of others (ARI).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    title: str
    metric: str = ""
    extra: Literal["", "text", "detection"] = ""
    pairs: tuple[Pair, ...]
    tasks: tuple[TaskColumn, ...] = ()
    methods: tuple[Row, ...]
    published: str = ""
    sources: tuple[str, ...] = ()
    efficiency: Efficiency | None = None
    presets: dict[str, Preset]

    @model_validator(mode="after")
    def _known_rows(self) -> TableSpec:
        if self.efficiency:
            rows = {row.id for row in self.methods}
            if absent := {self.efficiency.row, *self.efficiency.against} - rows:
                raise ValueError(f"efficiency names no row of the table: {', '.join(sorted(absent))}")
        return self

    def preset(self, name: str) -> Preset:
        """A preset by name, completed with the table's own pairs and methods.

        Raises:
            UserError: no such preset.
        """
        if name not in self.presets:
            raise unknown("preset", name, self.presets)
        preset = self.presets[name]
        tasks = self.tasks if preset.tasks is None else preset.tasks
        update = {"pairs": columns(preset.pairs or self.pairs, tasks), "methods": preset.methods or self.methods}
        return preset.model_copy(update={**update, "tasks": tasks})


def columns(pairs: tuple[Pair, ...], tasks: tuple[TaskColumn, ...]) -> tuple[Pair, ...]:
    """A column of each pair on each task; the pairs as they are where no tasks are named."""
    if not tasks:
        return pairs
    return tuple(
        pair.model_copy(update={"id": f"{pair.id}:{t.label}", "task": t.task, "metric": t.metric})
        for pair in pairs
        for t in tasks
    )


def _read_pairs(value: Any) -> Any:
    """Pairs may be written ``teacher-student``."""
    if not isinstance(value, list):
        return value
    read = []
    for item in value:
        if isinstance(item, str):
            teacher, dash, student = item.partition("-")
            if not dash:
                raise ValueError(f"'{item}' is not of the form teacher-student")
            item = {"id": item, "teacher": teacher, "student": student}
        read.append(item)
    return tuple(read)


def _read_rows(value: Any) -> Any:
    """Methods may be written by name alone."""
    if not isinstance(value, list):
        return value
    return tuple({"id": item, "method": item} if isinstance(item, str) else item for item in value)


def _expanded(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """``"*"`` is every method for images that shares the field's recipe, without variants such as ``cc.paper``.

    Families stand in the registry's order, methods of one family in that of their papers' years.
    """
    named = {row.id for row in rows}
    others = [e for e in index().values() if not e.recipe and "." not in e.name and e.inputs in ("images", "any")]
    others.sort(key=lambda entry: (FAMILIES.index(entry.family), entry.year))
    every = tuple(Row(id=entry.name, method=entry.name) for entry in others if entry.name not in named)
    return tuple(found for row in rows for found in (every if row.id == "*" else (row,)))


def table_names() -> list[str]:
    """The tables that ship with the suite."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def load_table(name: str) -> TableSpec:
    """A table by name, or by the path of a YAML file of one's own.

    Raises:
        UserError: no such table, or its YAML is malformed (file and line are named).
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else TABLES / f"{name}.yaml"
    if not path.is_file():
        raise unknown("table", name, table_names())
    table = _load(TableSpec, path, "tables")
    # Protocols of one's own lie beside the table.
    for preset_name, preset in table.presets.items():
        if preset.protocol.endswith((".yaml", ".yml")):
            table.presets[preset_name] = preset.model_copy(update={"protocol": str(path.parent / preset.protocol)})
    return table


def protocol_names() -> list[str]:
    """The protocols that ship with the suite."""
    return sorted(path.stem for path in (TABLES / "protocols").glob("*.yaml"))


def load_protocol(name: str) -> Protocol:
    """A protocol by name, or by the path of a YAML file of one's own.

    Raises:
        UserError: no such protocol, or its YAML is malformed (file and line are named).
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else TABLES / "protocols" / f"{name}.yaml"
    if not path.is_file():
        raise unknown("protocol", name, protocol_names())
    return _load(Protocol, path, "protocols")


class PairSettings(Strict):
    """Settings of a method that are published for some pairs, or for all, under one recipe.

    ``also`` are other recipes under which papers quote the method with them. ``our_choice``: nobody published them;
    they are marked as our choice wherever they show.
    """

    recipe: str
    also: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    values: dict[str, Any]
    source: str
    our_choice: bool = False


def pair_settings(method: str, pair: str, recipe: str) -> Mapping[str, Any]:
    """What is published for a method on a pair, where it differs from the method's defaults.

    A combination has its own published settings above those of its parts.
    """
    found: dict[str, Any] = {}
    if "+" in method:
        found = {part: values for part in method.split("+") if (values := pair_settings(part, pair, recipe))}
    entry = pair_entry(method, pair, recipe)
    return merged(found, entry.values) if entry else found


def pair_entry(method: str, pair: str, recipe: str) -> PairSettings | None:
    """The entry of tables/published/settings.yaml for a method on a pair, if there is one."""
    known = all_pair_settings().get(method, ())
    entries = (entry for entry in known if recipe in (entry.recipe, *entry.also))
    names = {pair, pair.partition(":")[0]}  # on one task, and on any
    return next((entry for entry in entries if names & set(entry.pairs) or not entry.pairs), None)


@functools.cache
def all_pair_settings() -> dict[str, tuple[PairSettings, ...]]:
    """Published settings by method (tables/published/settings.yaml)."""
    path = TABLES / "published" / "settings.yaml"
    raw = read_yaml(path)
    return {
        method: tuple(_validate(PairSettings, entry, path, (method, i)) for i, entry in enumerate(entries))
        for method, entries in raw.items()
    }


def _load(model: type[Model], path: Path, kind: str) -> Model:
    raw = read_yaml(path)
    if parent := raw.pop("extends", None):
        folder = TABLES if kind == "tables" else TABLES / kind
        base = folder / f"{parent}.yaml"
        if not base.is_file():
            raise UserError(f"{path} extends '{parent}', but there is no {base}")
        raw = merged(_load(model, base, kind).model_dump(mode="python", exclude_unset=True), raw)
    return _validate(model, raw, path)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, mappings within them merged likewise."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _check_keys(node: yaml.Node | None) -> None:
    """A key that stands twice in a mapping is an error: the first one would be lost."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check_keys(child)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key '{key.value}' is there twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
            _check_keys(value)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        UserError: the file is not YAML (its line is named), or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        loader = _Loader(text)
        node = loader.get_single_node()
        _check_keys(node)
        raw = loader.construct_document(node) if node else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: {error.problem or 'malformed YAML'}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} line 1: expected a mapping of keys to values")
    return raw


def _validate(model: type[Model], raw: Any, path: Path, prefix: Iterable[str | int] = ()) -> Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # a misspelt key, not its absence
        location = [*prefix, *first["loc"]]
        key = ".".join(map(str, location))
        line = _line_of(path, location)
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key"
        raise UserError(f"{path} line {line}: {key}: {message}") from None


def _line_of(path: Path, location: Iterable[str | int]) -> int:
    """The line of the deepest part of ``location`` that is written in the file."""
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    line = 1
    for key in location:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(key)]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


def stem(table: str, preset: str, usual: Protocol, protocol: Protocol, uniform: bool = False) -> str:
    """Name of the folder of a table: runs of another length, split or choice of settings are other tables."""
    length = f"-epochs{protocol.epochs}" if protocol.epochs != usual.epochs else ""
    split = f"-holdout{protocol.holdout}" if protocol.holdout != usual.holdout else ""
    arithmetic = f"-{protocol.precision}" if protocol.precision != usual.precision else ""
    arithmetic += f"-accumulate{protocol.accumulate}" if protocol.accumulate != usual.accumulate else ""
    return f"{table}-{preset}{length}{split}{arithmetic}{'-uniform' if uniform else ''}"


def steps_per_epoch(samples: int, protocol: Protocol) -> int:
    """Optimisation steps of one epoch."""
    if protocol.detection:
        return protocol.detection.iterations
    trained = samples - protocol.holdout
    return trained // protocol.batch_size if protocol.drop_last else math.ceil(trained / protocol.batch_size)
