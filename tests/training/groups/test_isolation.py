"""Whatever a method does to what its group shares: it is named and fails, and the others end in the bits as alone."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training_bench import CPU, PROTOCOL, Case, Result, TrainingBench, identical, tiny_data
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.analysis.similarity import BlockSimilarity
from benchmarks.common.seeding import seeded
from benchmarks.networks import build_network
from benchmarks.tasks.images import ImageData
from benchmarks.training import isolation
from benchmarks.training.failures import Interrupted
from kd_methods import registry
from kd_methods.contract import (
    Batch,
    Card,
    DataInfo,
    Losses,
    Method,
    MethodSettings,
    Needs,
    Network,
    Outputs,
    Progress,
    TeacherPass,
)

SAMPLES, STEPS = 100, 2
BEFORE = ("init", "adapt", "prepare", "phases", "deployed")
"""Moments in which a method's code runs before training."""

MOMENTS = (*BEFORE, "losses", "auxiliary_logits", "remarks")
WHOLE = ("init", "losses")
"""Moments at which every way is tried by default. They differ in what is lent: outside of steps what a method holds all
the time, in a step the batch as well, and there a change of the former shows only at the end of the epoch."""
COMPANIONS: list[Case] = [("kd", {}), ("block_kd", {"sample_stones": 1})]
"""The second one runs the teacher itself and draws random numbers."""


def first(teacher: Any) -> Tensor:
    return next(teacher.parameters())


def run_in_training_mode(at: Any) -> None:
    at.teacher.train()
    at.teacher(at.teacher.example(8) + torch.rand(8, 1, 1, 1), fields=())
    at.teacher.eval()


def fold_and_write(at: Any) -> None:
    first(at.teacher.fold_batch_norms()).data.mul_(1.5)


TEACHER: dict[str, tuple[Callable[[Any], Any], str]] = {
    "left in training mode": (lambda at: at.teacher.train(), "the teacher's mode"),
    "run in training mode": (run_in_training_mode, "running_mean"),
    "in place": (lambda at: first(at.teacher).mul_(1.5), "the teacher's module.conv1.weight"),
    ".data": (lambda at: first(at.teacher).data.mul_(1.5), "the teacher's module.conv1.weight"),
    ".numpy()": (lambda at: first(at.teacher).numpy().fill(1.5), "the teacher's module.conv1.weight"),
    "storage": (lambda at: first(at.teacher).untyped_storage().fill_(1), "the teacher's module.conv1.weight"),
    "folded copy": (fold_and_write, "the teacher's"),
    "another layer": (lambda at: setattr(at.teacher.module, "conv1", nn.Conv2d(3, 16, 3, padding=1)), "layers"),
    "gradients": (lambda at: at.teacher.requires_grad_(), "the teacher's gradients"),
    "labels of the data": (lambda at: at.info.labels.data.zero_(), "the training set's labels"),
}
"""What may be done to what a method holds all the time, and how it is named."""

TEACHER_PASS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "the teacher_pass's labels": (lambda at: at.teacher_pass.labels.numpy().fill(0), "the training set's labels"),
    "the teacher_pass's network": (lambda at: at.teacher_pass.network.train(), "the teacher's mode"),
}

BATCH: dict[str, tuple[Callable[[Any], Any], str]] = {
    "inputs in place": (lambda at: at.batch.inputs.zero_(), "the batch's inputs"),
    "inputs by .data": (lambda at: at.batch.inputs.data.zero_(), "the batch's inputs"),
    "labels by .numpy()": (lambda at: at.batch.labels.numpy().fill(0), "the batch's labels"),
    "the teacher's inputs": (lambda at: at.batch.teacher_inputs.data.zero_(), "the batch's renormalised"),
    "indices by .data": (lambda at: at.batch.indices.data.zero_(), "the batch's indices"),
    "logits by .numpy()": (lambda at: at.outputs.logits.numpy().fill(0), "the teacher's output 'logits'"),
    "stages by .data": (lambda at: at.outputs.stages[-1].data.zero_(), "the teacher's output '"),
    "stages by a view": (lambda at: at.outputs.stages[-1].transpose(1, 2)[0].zero_(), "the teacher's output '"),
}


USUAL = {".data", "threads", *TEACHER_PASS}
"""Ways that are tried by default at every moment: of what is lent and of the settings of the process one each, and what
is lent for preparing alone. All ways are looked for by the same lines of ``isolation.apart``: what can go wrong at the
other moments (building, evaluation, the end) is that a method's code runs outside of it."""


def no_hook(*_: Any) -> None: ...


class Halved(TorchFunctionMode):
    """Halves what comes out of every softmax."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return result / 2 if "softmax" in function.__name__ else result


PROCESS: dict[str, tuple[Callable[[], Any], str]] = {
    "threads": (lambda: torch.set_num_threads(2), "number of threads"),
    "dtype": (lambda: torch.set_default_dtype(torch.float64), "default dtype"),
    "device": (lambda: torch.set_default_device("cpu"), "default device"),
    "grad mode": (lambda: torch.set_grad_enabled(not torch.is_grad_enabled()), "grad mode"),
    "anomalies": (lambda: torch.autograd.set_detect_anomaly(True), "anomaly detection"),
    "deterministic": (lambda: torch.use_deterministic_algorithms(True, warn_only=True), "deterministic algorithms"),
    "denormals": (lambda: torch.set_flush_denormal(True), "flush of denormals"),
    "products": (lambda: torch.set_float32_matmul_precision("medium"), "precision of matrix products"),
    "mkldnn": (lambda: setattr(torch.backends.mkldnn, "enabled", False), "torch.backends.mkldnn.enabled"),
    "mkldnn's determinism": (lambda: setattr(torch.backends.mkldnn, "deterministic", True), "mkldnn.deterministic"),
    "cudnn": (lambda: setattr(torch.backends.cudnn, "benchmark", True), "torch.backends.cudnn.benchmark"),
    "tf32": (lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True), "matmul"),
    "autocast": (lambda: torch.set_autocast_enabled("cpu", True), "autocast on cpu"),
    "attention": (lambda: torch.backends.cuda.enable_math_sdp(False), "math attention"),
    "numpy's errors": (lambda: np.seterr(all="raise"), "errors of numpy"),
    "NNPACK": (lambda: torch._C._set_nnpack_enabled(False), "NNPACK"),  # type: ignore[attr-defined]
    "function mode": (lambda: Halved().__enter__(), "modes of torch functions"),
    "dispatch mode": (lambda: FlopCounterMode(display=False).__enter__(), "modes of dispatch"),
    "saved tensors": (lambda: saved_tensors_hooks(torch.round, no_hook).__enter__(), "hooks of saved tensors"),
    "hooks": (lambda: nn.modules.module.register_module_forward_hook(no_hook), "hooks of all modules"),
    "directory": (lambda: os.chdir("/"), "working directory"),
}

WAYS: dict[str, Callable[[Any], Any]] = {
    **{f"{way}": act for way, (act, _) in (TEACHER | TEACHER_PASS | BATCH).items()},
    **{f"{way}": lambda at, act=act: act() for way, (act, _) in PROCESS.items()},
    "random numbers": lambda at: (random.seed(1), np.random.seed(1), torch.manual_seed(1)),
    "": lambda at: None,
}


class _Culprit(Method):
    """Distils, and at one moment does something to what it shares."""

    card = Card(name="test_culprit", version=1, family="logit", title="Culprit")
    needs = Needs(student=("pooled",), teacher=("logits", "stages"))

    class Settings(MethodSettings):
        way: str = ""
        moment: str = "losses"

    settings: Settings

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        self.info = info
        self._at("init")

    def _at(self, moment: str, **passed: Any) -> None:
        if moment == self.settings.moment:
            WAYS[self.settings.way](SimpleNamespace(teacher=self.teacher, info=self.info, **passed))

    def adapt(self, student: Network) -> Network:
        self._at("adapt")
        return student

    def prepare(self, teacher_pass: TeacherPass) -> None:
        self._at("prepare", teacher_pass=teacher_pass)

    def phases(self) -> Sequence[Any]:
        self._at("phases")
        return ()

    def deployed(self, student: Network) -> nn.Module:
        self._at("deployed")
        return super().deployed(student)

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        result = Losses(
            task={"task": batch.loss(student.logits)},
            distill={"match": (student.logits - teacher.logits.clone()).square().mean()},
        )
        self._at("losses", batch=batch, outputs=teacher)
        return result

    def auxiliary_fields(self) -> Sequence[str]:
        return ("last_map",)

    def auxiliary_logits(self, student: Outputs) -> Mapping[str, Tensor]:
        self._at("auxiliary_logits")
        return {}

    def remarks(self) -> Sequence[str]:
        self._at("remarks")
        return ()


class _Chance(Method):
    """Depends on Python's and numpy's random numbers, in training and in evaluation."""

    card = Card(name="test_chance", version=1, family="logit", title="Chance")
    needs = Needs(student=("pooled",), teacher=("logits",))

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        weight = random.random() + float(np.random.randn())
        return Losses(task={"task": weight * batch.loss(student.logits)})

    def auxiliary_fields(self) -> Sequence[str]:
        return ("last_map",)

    def auxiliary_logits(self, student: Outputs) -> Mapping[str, Tensor]:
        noise = torch.rand_like(student.logits) + random.random() + float(np.random.rand())
        return {"noise": student.logits * noise}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for method in (_Culprit, _Chance):
            patch.setitem(registry._classes, method.card.name, method)
        yield


@pytest.fixture(scope="module")
def data() -> ImageData:
    return tiny_data(SAMPLES)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> Callable[[str, bool], TrainingBench]:
    """Groups in which the usual ways, or the others, are tried at one moment, between companions; trained once."""
    benches: dict[tuple[str, bool], TrainingBench] = {}

    def of(moment: str, usually: bool) -> TrainingBench:
        if (moment, usually) not in benches:
            bench = benches[moment, usually] = TrainingBench(tmp_path_factory.mktemp(moment), data)
            chosen = [way for way in ways(moment) if usual(moment, way) == usually]
            culprits: list[Case] = [("test_culprit", {"way": way, "moment": moment}) for way in chosen]
            bench.cases = [COMPANIONS[0], *culprits, *COMPANIONS[1:], ("test_chance", {})]
            bench.run(bench.cells(bench.cases))
        return benches[moment, usually]

    return of


def ways(moment: str) -> dict[str, str]:
    """What can be done at a moment, and how it is named."""
    tried = TEACHER | PROCESS
    if moment == "auxiliary_logits":  # evaluation puts it back by itself
        del tried["grad mode"]
    tried |= {"prepare": TEACHER_PASS, "losses": BATCH}.get(moment, {})
    return {way: text for way, (_, text) in tried.items()}


def usual(moment: str, way: str) -> bool:
    return moment in WHOLE or way in USUAL


@pytest.mark.parametrize(
    ("moment", "way"),
    [
        pytest.param(moment, way, marks=() if usual(moment, way) else pytest.mark.slow)
        for moment in MOMENTS
        for way in ways(moment)
    ],
)
def test_the_culprit_is_named_and_the_others_end_as_alone(
    tried: Callable[[str, bool], TrainingBench], alone: Callable[[Any], Result], moment: str, way: str
):
    bench = tried(moment, usual(moment, way))
    (culprit,) = bench.cells([("test_culprit", {"way": way, "moment": moment})])
    status = bench.store.run(culprit).status
    assert status["state"] == "failed" and "\n" not in status["message"]
    assert "method 'test_culprit' changed" in status["message"] and ways(moment)[way] in status["message"]
    assert not (bench.store.run(culprit) / "student.pt").exists()
    for cell in bench.cells([*COMPANIONS, ("test_chance", {})]):
        assert Result(bench.store, cell) == alone(cell), cell.label


def test_what_is_only_looked_at_is_no_change(bench: TrainingBench, alone: Callable[[Any], Result]):
    """Reading through numpy, a forward pass of its own and random numbers of all kinds are a method's own business."""
    looks = {
        "numpy": lambda at: first(at.teacher).numpy().sum() + at.batch.inputs.numpy().sum(),
        "pass": lambda at: at.teacher(at.batch.inputs, fields=()),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, look in looks.items():
            patch.setitem(WAYS, name, look)
        cells = bench.cells([("test_culprit", {"way": way}) for way in ("", "random numbers", *looks)])
        bench.run(cells)
    plain = Result(bench.store, cells[0])
    assert all(identical(Result(bench.store, cell).weights, plain.weights) for cell in cells[2:])


def test_nothing_is_saved_of_steps_after_a_change(bench: TrainingBench):
    """Else a process that is killed would go on from there with a teacher as it was, and notice nothing."""
    (cell,) = bench.cells([("test_culprit", {"way": ".data", "moment": "losses"})])
    bench.run([cell], save_seconds=0.0)
    assert bench.states([cell]) == ["failed"] and not (bench.store.run(cell) / "checkpoint.pt").exists()


def test_random_numbers_of_any_library_are_the_cell_s_own(bench: TrainingBench, alone: Callable[[Any], Result]):
    """In company, and after a stop."""
    chance, draws = bench.cells([("test_chance", {}), ("test_culprit", {"way": "random numbers"})])
    with pytest.raises(Interrupted):
        bench.run([draws, chance], stopping=lambda: bench.steps()[chance.label] >= STEPS + 1)
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]
    bench.run([draws, chance])
    assert Result(bench.store, chance) == alone(chance)
    assert (random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]) == before
    assert Result(bench.store, chance).records[0]["probes"]["noise"]


def test_a_purpose_within_another_moves_nothing():
    drawn = []
    for inner in (0, 3):
        with seeded(CPU, 1, "outer"):
            before = random.random(), np.random.randn(), float(torch.rand(()))
            with seeded(CPU, 1, "inner"):
                for _ in range(inner):
                    random.random(), np.random.randn(), torch.rand(())
            drawn.append((*before, random.random(), np.random.randn(), float(torch.rand(()))))
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 6


def test_a_method_gets_what_it_needs_and_not_what_others_need(data: ImageData):
    """One that forgot to say what it reads would run in company and fail alone."""
    teacher, usual = data.build("wrn_16_1").requires_grad_(False).eval(), (PROTOCOL.mean, PROTOCOL.std)
    batch = next(iter(data.batches(0, 1)))
    inputs = batch.student(2)
    outputs = teacher(batch.inputs(usual), fields=("stages", "pooled"))
    outputs = outputs.with_second(teacher(batch.inputs(usual, view=2), fields=("stages", "pooled")))
    student_batch, lent, _ = isolation.lend(inputs, outputs, Needs(teacher=("logits", "pooled")))
    assert lent is not None and torch.equal(lent.pooled, outputs.pooled) and student_batch.second is None
    for read in (lambda: lent.stages, lambda: lent.second):
        with pytest.raises(LookupError):
            read()
    assert isolation.lend(inputs, outputs, Needs(student=("stages",)))[1] is None
    student_batch, lent, _ = isolation.lend(inputs, outputs, Needs(teacher=("stages",), views=2))
    with pytest.raises(LookupError, match="logits"):
        _ = lent.logits  # type: ignore[union-attr]
    assert lent is not None and torch.equal(lent.second.stages[0], outputs.second.stages[0])
    assert student_batch.second is not None and torch.equal(student_batch.second, inputs.second)


@pytest.mark.parametrize("name", ["resnet20", "MobileNetV2", "ShuffleV1", "vgg8", "timm:vit_tiny_patch16_224"])
def test_a_lent_network_is_the_original_until_it_is_written_to(name: str):
    shape = (3, 224, 224) if "timm" in name else (3, 32, 32)
    original = build_network(name, 10, shape).requires_grad_(False).eval()
    x = torch.randn(2, *shape)
    loans = isolation.Loans()
    lent = loans.network("the teacher", original)
    with torch.no_grad():
        wanted = original(x).logits, original.fold_batch_norms()(x).logits
        assert torch.equal(lent(x).logits, wanted[0]) and torch.equal(lent.fold_batch_norms()(x).logits, wanted[1])
        assert loans.changed() == []
        for network in (lent, lent.fold_batch_norms()):
            for parameter in network.parameters():
                parameter.data.mul_(1.5)
        assert not torch.equal(lent(x).logits, wanted[0]) and not torch.equal(
            lent.fold_batch_norms()(x).logits, wanted[1]
        )
        assert torch.equal(original(x).logits, wanted[0]) and torch.equal(
            original.fold_batch_norms()(x).logits, wanted[1]
        )
    assert loans.changed()


def test_a_network_that_changes_settings_while_it_is_built_changes_them_for_nobody(
    bench: TrainingBench, monkeypatch: pytest.MonkeyPatch
):
    """The groups after it would be trained under them."""
    build = bench.data.build

    def changing(name: str) -> Any:
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True, warn_only=True)
        return build(name)

    monkeypatch.setattr(bench.data, "build", changing)
    assert bench.context().teacher(bench.ref)
    assert torch.get_num_threads() == 1 and not torch.are_deterministic_algorithms_enabled()


def test_memory_that_is_not_torch_s_own_is_copied(data: ImageData):
    """Weights that lie in a mapped file, labels that are an array of numpy."""
    array = np.ones(3, dtype=np.float32)
    loans = isolation.Loans()
    loans.tensor("a tensor", torch.from_numpy(array)).data.zero_()
    assert array.sum() == 3 and loans.changed() == ["a tensor"]
    original = data.build("wrn_16_1").requires_grad_(False).eval()
    for parameter in original.parameters():
        parameter.data = torch.from_numpy(parameter.numpy().copy())
    for _ in range(2):
        loans = isolation.Loans()
        lent = loans.network("the teacher", original)
        assert loans.changed() == []
    assert torch._C._is_cow_tensor(first(lent)), "the second copy costs nothing"  # type: ignore[attr-defined]
    first(lent).data.zero_()
    assert first(original).any() and loans.changed() == ["the teacher's module.conv1.weight"]


def test_a_student_that_writes_into_its_inputs_is_observed_alone(data: ImageData):
    teacher, student = (data.build(name).requires_grad_(False).eval() for name in ("wrn_16_1", "resnet8"))
    observe = BlockSimilarity(teacher, (PROTOCOL.mean, PROTOCOL.std), data)
    before = observe(student)

    def write(x: Tensor, **named: Any) -> Outputs:
        return student(x.zero_(), **named)

    assert observe(write) != before  # type: ignore[arg-type]
    assert observe(student) == before


def test_without_copies_on_write_loans_are_copies(monkeypatch: pytest.MonkeyPatch, data: ImageData):
    """A version of torch may drop them."""
    monkeypatch.setattr(isolation, "_lazy_clone", torch.clone)
    monkeypatch.setattr(isolation, "_never_written", lambda tensor: False)
    loans, original = isolation.Loans(), torch.tensor([1.0, float("nan")])
    lent = loans.tensor("a tensor", original)
    assert loans.changed() == []
    network = loans.network("the teacher", data.build("wrn_16_1").requires_grad_(False).eval())
    assert loans.changed() == []
    first(network).data[0] = 2
    assert loans.changed() == ["the teacher's module.conv1.weight"]
    lent.data[0] = 2
    assert loans.changed()[0] == "a tensor" and original[0] == 1
