"""A protocol in words, as every table prints it. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection

from ..common.console import counted, percent
from .protocol import Protocol
from .recipe import Detection
from .schedules import SCHEDULES


def lines(protocol: Protocol, students: Collection[str] | None = None, with_task: bool = True) -> tuple[str, ...]:
    """What is printed under every table; learning rates of ``students`` only, where given.

    Without the task, where columns say which they are on.
    """
    where = f" on {protocol.task}" if with_task else ""
    detection = protocol.detection
    return _detection(protocol, detection, where) if detection else _training(protocol, students, where)


def _training(protocol: Protocol, students: Collection[str] | None, where: str) -> tuple[str, ...]:
    p = protocol
    special = {n: lr for n, lr in p.lr_by_student.items() if students is None or n in students}
    rates = f"lr {p.optimizer.lr:g}" + "".join(f", {lr:g} for {net}" for net, lr in special.items())
    rates += f", {p.lr_alone:g} without a teacher" if p.lr_alone else ""
    start = f"; networks begin with weights of {p.start}" if p.start else ""
    fill = " (reflected)" if p.crop_fill == "reflect" else ""
    crop = f"random crop with padding {p.crop_padding}{fill}" if p.crop_padding else "no crop"
    crop += " (the same for a whole batch)" if p.one_crop_per_batch else ""
    crop = p.crops.line() if p.crops else crop
    turn = f", random rotation by up to {p.rotation:g} degrees" if p.rotation else ""
    smooth = f", label smoothing {p.label_smoothing:g}" if p.label_smoothing else ""
    smooth += ", binary cross-entropy of every class as the task loss" if p.task_loss == "bce" else ""
    mixed = f", {p.mixing.line()}" if p.mixing else ""
    mixed += f", {p.repeats} augmentations of each image in a batch" if p.repeats > 1 else ""
    average = "" if p.drop_path is None else f", stochastic depth {p.drop_path:g}"
    average += f", evaluated weights are moving averages (decay {p.ema:g})" if p.ema else ""
    noise = f", {percent(p.label_noise)} of the training labels exchanged" if p.label_noise else ""
    noise += f", {p.teacher_answers.line()}" if p.teacher_answers else ""
    last = ", last incomplete batch dropped" if p.drop_last else ""
    second = f", second view by {p.second_view} for methods that want one" if p.second_view else ""
    stored = ", teacher's logits computed once, on another augmentation" if p.stored_logits else ""
    tested = f", tested on {p.holdout} held-out training images" if p.holdout else ""
    data = f"{crop}{turn}{', horizontal flip' if p.flip else ''}{second}{mixed}{noise}{smooth}{stored}"
    if p.max_length:
        data = f"at most {p.max_length} tokens, batches of texts of similar length"
        data += f", tokenizer {p.tokenizer}" if p.tokenizer else ""
    schedule = SCHEDULES.get(p.schedule)
    decays = _decays(p) if schedule.decays else ""
    return (
        f"{p.name} v{p.version}{where}: {counted(p.epochs, 'epoch')}, batch {p.batch_size}{last}",
        f"{p.optimizer.line(not schedule.moves_momentum)}, {rates}" + decays + schedule.line(p) + average,
        f"{data}, {_computed_in(p)}{tested}{start}",
    )


def _decays(protocol: Protocol) -> str:
    """By what the rate falls, and after which epochs; a short run may pass several milestones at once."""
    p = protocol
    passed = Counter(math.ceil(milestone * p.epochs / p.recipe_epochs) for milestone in p.milestones)
    after: dict[int, list[int]] = defaultdict(list)
    for epoch in sorted(epoch for epoch in passed if epoch < p.epochs):
        after[passed[epoch]].append(epoch)
    return "".join(
        f", times {p.decay**count:g} after epoch{'s' if len(epochs) > 1 else ''} {', '.join(map(str, epochs))}"
        for count, epochs in after.items()
    )


def _detection(protocol: Protocol, detection: Detection, where: str) -> tuple[str, ...]:
    p = protocol
    total, after = p.epochs * detection.iterations, p.milestones_in(detection.iterations)
    decays = f", times {p.decay:g} after {', '.join(map(str, after))} iterations" if after else ""
    rise = f", linear warm-up over {detection.warmup} iterations" if detection.warmup else ""
    low, high = min(detection.short_sides), max(detection.short_sides)
    sides = f"{low}" if low == high else f"{low} to {high} ({len(detection.short_sides)} sizes)"
    start = "backbones of students begin with weights of ImageNet"
    start = start if detection.pretrained else "students begin with random weights"
    return (
        f"{p.name} v{p.version}{where}: {total} iterations, batch {p.batch_size}",
        f"{p.optimizer.line()}, lr {p.optimizer.lr:g}{decays}{rise}",
        f"short side {sides}, long side at most {detection.long_side}, short side {detection.test_side} in evaluation"
        f"{', horizontal flip' if p.flip else ''}, {_computed_in(p)}; {start}",
    )


def _computed_in(protocol: Protocol) -> str:
    """Precision, accumulation, processes and compilation; of which samples batch statistics are."""
    p = protocol
    compiled = ", compiled" if p.compile else ""
    if p.accumulate * p.processes == 1:
        return f"{p.precision}{compiled}"
    on = f" on {p.processes} processes" if p.processes > 1 else ""
    divided = on + (f" in {p.accumulate} parts" if p.accumulate > 1 else "")
    together = p.batch_size // p.accumulate
    if p.sync_bn:
        size = f"batch statistics, synchronised, and relations are those of {together} samples"
    elif p.world_size > 1:
        size = f"batch statistics are each process's own, of {p.part_size} samples, relations those of {together}"
    else:
        size = f"batch statistics and relations are those of {p.part_size} samples"
    return f"{p.precision}, each batch{divided} ({size}){compiled}"
