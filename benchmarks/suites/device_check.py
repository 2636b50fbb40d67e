"""Whether a device trains as a CPU does: every method for two steps on both, and what else a run relies on."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from kd_methods import registry
from kd_methods.errors import UserError

from ..common.devices import device as choose
from ..common.devices import overruled
from ..common.seeding import seed_all
from ..common.workspace import Workspace
from ..config.protocol import load_protocol
from ..cost.measuring import peak_memory, seconds_of_each
from ..cost.setup import Suite
from ..detection.engine import first_losses
from ..store.cell import TeacherRef
from ..store.make_cell import Distillation, make_cell
from ..tasks import get_task
from ..training import precision
from ..training.failures import Refused
from .baseline_loop import BaselineLoop

PAIR, BATCH = "resnet14-resnet8", 32
TRANSFORMERS = "timm:test_vit-timm:test_vit"
"""For methods that are for no other networks."""
TEXTS = {"pair": "bert_l4_h64-bert_l2_h64", "task": "grammar", "recipe": "grammar-demo"}
DETECTORS = ("faster_rcnn_small_r18x2", "faster_rcnn_small_r18x4"), ("gfl_small_r18x2", "gfl_small_r18x4")
"""Teacher and student: of two stages, and of one for the methods that are for such."""
STEPS = 2
TOLERANCE = 1e-3
"""Relative difference of a loss in fp32 between two devices: kernels sum in different orders."""
LOW = 0.05
"""The same between a lower precision and fp32."""
SPREAD = 3
"""Where a method draws random numbers, those of a GPU are others: its loss may differ by so many times what another
seed changes it on the CPU."""
REFERENCE = "kd"
"""What precisions, compiler, bits, memory and speed are looked at with."""


@dataclass(frozen=True)
class Finding:
    """One line of the check; ``wrong`` where a run would suffer from it, not ``checked`` where nothing is known."""

    what: str
    text: str
    wrong: bool = False
    checked: bool = True

    def __str__(self) -> str:
        mark = "WRONG" if self.wrong else "ok" if self.checked else "?"
        return f"{mark:5s} {self.what}: {self.text}"


def findings(device: str, methods: Sequence[str] = ()) -> Iterator[Finding]:
    """Check a device, one finding after another; whatever fails is a finding.

    Args:
        device: as ``--device`` has it; ``cpu`` is compared with itself.
        methods: those that are trained; by default all.
    """
    overruling = ", ".join(overruled(choose(device)))
    yield Finding("fp32", overruling or "products in fp32 are in fp32", bool(overruling))
    if overruling:  # nothing can be compared then
        return
    here, cpu = Suite(device, BATCH), Suite("cpu", BATCH)
    texts = functools.cache(lambda where: Suite(where, BATCH, task=TEXTS["task"], recipe=TEXTS["recipe"]))
    for method in methods or registry.available():
        match registry.card(method).modality:
            case "detection":
                yield _guarded(method, partial(_detection, method, device))
            case "text":
                yield _guarded(method, partial(_text, method, texts, device))
            case _:
                yield _guarded(method, partial(_image, method, here, cpu))
    for name in ("bf16", "fp16", "tf32"):
        yield _guarded(name, partial(_lower, here, name, compiled=False))
    yield _guarded("compile", partial(_lower, here, "fp32", compiled=True))
    yield _guarded("determinism", partial(_determinism, here))
    yield _guarded("memory", partial(_memory, here))
    yield _guarded("throughput", partial(_throughput, here))


def _guarded(what: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except UserError as error:
        return Finding(what, f"not checked: {error}", checked=False)
    except Exception as error:  # whatever a device, a driver or a compiler raises
        return Finding(what, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", wrong=True)


def losses(suite: Suite, method: str, stream: int = 0, pair: str = PAIR) -> list[float]:
    """The loss of each of two steps; ``stream`` chooses the random numbers drawn in them, and nothing else."""
    seed_all(0)
    bench = suite.bench(pair, method)
    student_run, sums = bench.student_run, []
    if stream:
        student_run.stream.state = [_other(state, stream) for state in student_run.stream.state]
    before = 0.0
    for _ in range(STEPS):
        bench.step()
        now = sum(float(value) for value in student_run.sums.values())
        sums.append(now - before)
        before = now
    return sums


def _other(state: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return generator.get_state() if state.numel() == generator.get_state().numel() else state


def difference(left: Sequence[float], right: Sequence[float]) -> float:
    """The largest relative difference of two rows of losses; infinite where one is not finite."""
    if not all(map(math.isfinite, (*left, *right))):
        return math.inf
    return max(abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in zip(left, right, strict=True))


def _method(method: str, here: Suite, cpu: Suite, pair: str = PAIR) -> Finding:
    computed, expected = losses(here, method, pair=pair), losses(cpu, method, pair=pair)
    return _compared(method, computed, expected, lambda: losses(cpu, method, stream=1, pair=pair))


def _image(method: str, here: Suite, cpu: Suite) -> Finding:
    try:
        return _method(method, here, cpu)
    except UserError:
        return _method(method, here, cpu, TRANSFORMERS)


def _text(method: str, suite: Callable[[str], Suite], device: str) -> Finding:
    return _method(method, suite(device), suite("cpu"), TEXTS["pair"])


def _detection(method: str, device: str) -> Finding:
    """On drawn shapes, in processes of their own."""
    protocol = load_protocol("shapes-demo")
    with tempfile.TemporaryDirectory() as folder:
        data = get_task(protocol.task).fingerprint(Path(folder), protocol)
        place = Workspace(torch.device("cpu"), Path(folder))
        there = replace(place, device=choose(device))
        for teacher, student in DETECTORS:
            ref = TeacherRef(teacher, protocol.mean, protocol.std, weights="none")
            cell = make_cell(protocol, data, student, Distillation(method, ref, {}))
            try:
                expected, other = first_losses(cell, protocol, place)
            except Refused as error:
                refusal = str(error)
                continue
            return _compared(method, first_losses(cell, protocol, there)[0], expected, partial(list, other))
    raise UserError(refusal)


def _compared(
    method: str, computed: Sequence[float], expected: Sequence[float], otherwise: Callable[[], Sequence[float]]
) -> Finding:
    """Losses of a device against those of the CPU; ``otherwise`` are the CPU's with other random numbers."""
    if (apart := difference(computed, expected)) <= TOLERANCE:
        return Finding(method, f"losses as on the CPU, within {apart:.0e}")
    drawn = difference(expected, otherwise())
    if apart <= SPREAD * drawn:
        return Finding(method, f"losses within {apart:.0e} of the CPU's; its random numbers change them by {drawn:.0e}")
    return Finding(method, f"losses {_listed(computed)}, on the CPU {_listed(expected)}", wrong=True)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _lower(suite: Suite, name: str, compiled: bool) -> Finding:
    other = suite.computing(name, compiled)
    precision.check(other.protocol, suite.device)
    apart = difference(losses(other, REFERENCE), losses(suite, REFERENCE))
    bound = TOLERANCE if compiled else LOW
    return Finding("compile" if compiled else name, f"losses within {apart:.0e} of fp32's", wrong=not apart <= bound)


def _determinism(suite: Suite) -> Finding:
    same = losses(suite, REFERENCE) == losses(suite, REFERENCE)
    return Finding("determinism", "twice the same bits" if same else "the same steps end in other bits", wrong=not same)


def _memory(suite: Suite) -> Finding:
    with peak_memory(suite.device) as figures:
        bench = suite.bench(PAIR, REFERENCE)
        bench.step()
    if suite.device.type == "cpu" or figures["bytes"] is None:
        return Finding("memory", "not checked: the allocator's figures are for GPUs", checked=False)
    return Finding("memory", f"peak {figures['bytes'] / 2**20:.0f} MiB, {figures['kind']}", not figures["bytes"])


def _throughput(suite: Suite) -> Finding:
    bench, cell = suite.bench(PAIR, REFERENCE), suite.cell(REFERENCE, PAIR)
    baseline = BaselineLoop(cell, suite.protocol, suite.data, suite.teacher(PAIR), workers=0)
    batches = baseline.batches()
    ours, theirs = _seconds(bench.step, suite), _seconds(lambda: baseline.step(*next(batches)), suite)
    text = f"{BATCH / ours:.0f} images/s, {theirs / ours:.1f} times the field's usual loop"
    return Finding("throughput", text, wrong=ours > 1.5 * theirs)


def _seconds(step: Callable[[], object], suite: Suite) -> float:
    """The best of some steps: what disturbs one makes it longer."""
    return min(seconds_of_each(step, suite.device, warm_up=0, timed=5))
