"""What must hold of every method: iterates over the registry, so a new method's file is tested by being there."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import kd_methods
from benchmarks import networks
from benchmarks.cli import descriptions
from benchmarks.networks import Architecture, Chain, NetworkView, build_network, macs
from kd_methods import functional, registry
from kd_methods.contract import (
    FIELDS,
    NO_OUTPUTS,
    Batch,
    DataInfo,
    Layout,
    Losses,
    Method,
    Needs,
    Outputs,
    Progress,
    Tokens,
)
from kd_methods.errors import UserError
from kd_methods.feature._connectors import Connector, ConvReg

CLASSES = 10
INFO = DataInfo(num_samples=100, num_classes=CLASSES, labels=torch.arange(100) % CLASSES)
EVERY = kd_methods.available()
NAMES = [
    name for name in EVERY if kd_methods.card(name).modality != "detection"
]  # those: tests/detection/test_detectors.py
# Settings that switch to other code, tested like methods of their own.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "at": [{"p": 1}],
    "kdsvd": [{"k": 2}],
    "reviewkd": [{"student_preact": True}],
    "ofd": [{"teacher_bn": "batch"}],
    "cat_kd": [{"normalize": True}],
    "norm": [{"schedule": "constant"}],
    "ofa": [{"eps": 1.5}],
    "crd": [{"negatives": 20}],
    "mgd": [{"dropped": "pixels"}],
    "feature_only": [
        {"detach": False, "kd": 1.0},
        {"mapping": "full", "projector": "three_layer"},
        {"distance": "gram"},
    ],
    "letkd1": [{"normalise_assignment": False}],
    "letkd2": [{"alpha_intermediate": 0.0}],
    "block_kd": [
        {"distance": "dkd"},
        {"teacher_bn": "batch"},
        {"connector": "conv3x3_leaky"},
        {"connector": "transposed"},
        {"sample_stones": 2},
        {"active_stones": (), "warmup": 2.0},
    ],
}
VARIANTS |= {name: [{"scales": (1, 2, 4)}] for name in ("sdd_kd", "sdd_dkd", "sdd_nkd")}
VARIANTS |= {"wkd_l": [{"schedule": "constant"}], "wkd_f": [{"schedule": "constant"}]}
VARIANTS |= {"diffkd": [{"latent": 24, "steps": 2}], "minilmv2": [{"teacher_layer": 2, "head_width": 32}]}
VARIANTS["fcfd"] = [{"teacher_bn": "eval"}, {"directions": "to_teacher"}, {"paths": 0}]
VARIANTS |= {"rld": [{"alpha_temperature": 4.0}], "abkd": [{"alpha": 0.0, "beta": 1.0}]}
VARIANTS["pkd_patient"] = [{"layers": "last", "reduction": "batchmean"}]
VARIANTS["tinybert"] = [{"hard": 0.5}]
COMPOSED = ["kd@ls", "dkd@ls", "ctkd@ls", "mlld@ls", "crd+kd", "reviewkd+dkd", "norm+sp", "ab+kd@ls", "letkd2+sp"]
UNTAUGHT: dict[str, dict[str, Any]] = {"crld": {"weak_threshold": 0.0, "strong_threshold": 0.0}}
"""Settings by which a teacher that never learnt is heard."""
CASES = [
    (name, UNTAUGHT.get(name, {}) | values) for name in [*NAMES, *COMPOSED] for values in ({}, *VARIANTS.get(name, []))
]
IDS = [f"{name}{values or ''}" for name, values in CASES]
PAIRS = [
    ("resnet14", "resnet8"),
    ("wrn_16_1", "wrn_16_1"),
    ("resnet8", "ShuffleV2x0.5"),  # student's maps smaller
    ("vgg8", "resnet8"),  # student's maps larger, four stages against three
    ("vgg8", "MobileNetV2"),
    ("MobileNetV2", "wrn_16_1"),
]
REFUSED = {"fsp": "equal channels", "ft": "1x1 map", "wkd_f": "two positions"} | dict.fromkeys(
    ["letkd1", "letkd2", "quest", "letkd2+sp"], "teacher maps"
)
"""Methods that cannot work on every pair of CNNs, and a part of what they say then."""
each_case = pytest.mark.parametrize(("name", "values"), CASES, ids=IDS)
TEXT_PAIR = ("bert_l4_h64", "bert_l2_h64")
WORDS, LENGTH = 60, 7
ATTENTION = ("queries", "keys", "values")


OWN_PAIRS = {"vitkd": ("vit", "vit")}


def pair_for(name: str) -> tuple[str, str]:
    """A pair that the method is made for."""
    return OWN_PAIRS.get(name, TEXT_PAIR if kd_methods.card(name).modality == "text" else ("resnet14", "resnet8"))


class ViT(Architecture):
    """A small vision transformer with a class token: tokens (B, L, D) of a square of patches and one more."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 24))
        self.blocks = nn.ModuleList(Block(24, 2) for _ in range(3))
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, CLASSES)

    def chain(self) -> Chain:
        blocks = tuple((f"blocks.{i}", block) for i, block in enumerate(self.blocks))
        ends = tuple(name for name, _ in blocks)
        units = (
            ("patches", self._tokens),
            *blocks,
            ("norm", self.norm),
            ("pool", lambda x: x[:, 0]),
            ("head", self.head),
        )
        return Chain(units, Layout("patches", ends, ends, ends, "norm", "pool", prefix_tokens=1))

    def _tokens(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), patches], 1)


@functools.cache
def network(name: str, role: str) -> NetworkView:
    """A small network whose running statistics have seen data; teachers are frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(len(name) + 100 * (role == "teacher"))
        if name in networks.ENCODERS:
            view = build_network(name, CLASSES, vocabulary=WORDS)
            return view.requires_grad_(False).eval() if role == "teacher" else view
        if name == "vit":
            view = NetworkView(ViT(), methodcaller("chain"), (3, 16, 16))
        else:
            view = build_network(name, CLASSES, (3, 16, 16))
        for _ in range(3):
            view(torch.randn(8, 3, 16, 16), fields=())
    return view.requires_grad_(False).eval() if role == "teacher" else view


def make_batch(size: int = 6, seed: int = 0, text: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    if text:
        lengths = torch.randint(3, LENGTH + 1, (size,), generator=generator)
        lengths[0] = LENGTH
        mask = (torch.arange(LENGTH) < lengths[:, None]).long()
        ids = torch.randint(5, WORDS, (size, LENGTH), generator=generator) * mask
        labels = torch.randint(0, CLASSES, (size,), generator=generator)
        x = torch.stack([ids, mask, mask * (torch.arange(LENGTH) > 2)], 1)
        return Batch(x, labels, torch.arange(size), F.cross_entropy, x)
    inputs = torch.randn(size, 3, 16, 16, generator=generator)
    labels = torch.randint(0, CLASSES, (size,), generator=generator)
    second = inputs + 0.3 * torch.randn(size, 3, 16, 16, generator=generator)
    return Batch(inputs, labels, torch.arange(size), F.cross_entropy, second)


Step = Callable[[Any, Any, Batch, Progress], Losses]


class Setup:
    """A method on a pair, and what it sees of one batch."""

    def __init__(
        self,
        name: str,
        values: dict[str, Any] | None = None,
        pair: tuple[str, str] | None = None,
        size: int = 6,
    ) -> None:
        torch.manual_seed(7)
        pair = pair or pair_for(name)
        self.pair = pair
        self.teacher = network(pair[0], "teacher")
        self.plain = copy.deepcopy(network(pair[1], "student"))  # a method may change it
        self.method: Method = kd_methods.build(name, self.plain, self.teacher, INFO, **(values or {})).train()
        self.student = self.method.adapt(self.plain).train()
        self.text = pair[1] in networks.ENCODERS
        self.batch = make_batch(size, text=self.text)
        self.progress = Progress(1.0, 240)

    def parts(self) -> Iterator[tuple[str, Needs, Step, bool]]:
        """The first phases and the training proper: prefix of their terms, needs, losses, whether the student runs."""
        for phase in self.method.phases():
            yield f"{phase.name}/", phase.needs, phase.losses, phase.student
        yield "", self.method.needs, self.method.losses, True

    def outputs(self, needs: Needs | None = None, everything: bool = False) -> tuple[Outputs, Outputs]:
        needs = needs or self.method.needs
        every = (*FIELDS, *ATTENTION)
        s_fields = every if everything else needs.student
        t_fields = every if everything else [field for field in needs.teacher if field != "logits"]
        views = []
        for x in (self.batch.inputs, self.batch.second)[: 2 if everything else needs.views]:
            student = self.student(x, at=needs.student_units, fields=s_fields)
            with torch.no_grad():
                teacher = self.teacher.fold_batch_norms()(x, at=needs.teacher_units, fields=t_fields)
            views.append((student, teacher))
        (student, teacher), *second = views
        return (student.with_second(second[0][0]), teacher.with_second(second[0][1])) if second else (student, teacher)

    def step(self) -> Losses:
        """The terms of one batch, those of first phases under the phase's name."""
        found = Losses()
        for prefix, needs, losses, runs in self.parts():
            student, teacher = self.outputs(needs)
            terms = losses(student if runs else NO_OUTPUTS, teacher, self.batch, self.progress)
            found.task |= {f"{prefix}{key}": term for key, term in terms.task.items()}
            found.distill |= {f"{prefix}{key}": term for key, term in terms.distill.items()}
        return found

    def losses(self) -> Losses:
        """As :meth:`step`, but repeatable: draws start alike and what the method keeps is put back."""
        kept = [(m, {k: b if b is None else b.clone() for k, b in m._buffers.items()}) for m in self.method.modules()]
        torch.manual_seed(11)
        losses = self.step()
        for module, buffers in kept:
            module._buffers.update(buffers)  # not in place: the backward pass may need what is there
        return losses


def total_of(terms: dict[str, Tensor]) -> Tensor:
    return Losses(distill=terms).total()


def clear(module: nn.Module) -> None:
    module.zero_grad(set_to_none=True)


def test_registry_lists_the_methods():
    assert {"student", "kd", "dkd", "fitnet", "at", "sp", "pkt", "rkd", "block_kd", "block_kd.lite"} <= set(NAMES)


@pytest.mark.parametrize("name", EVERY)
def test_card(name: str):
    card, entry = kd_methods.card(name), registry.index()[name]
    assert (card.name, card.title) == (entry.name, entry.title)
    assert (card.family, card.modality) == (entry.family, entry.modality)
    assert card.family in registry.FAMILIES and entry.folder in (card.family, card.modality)
    assert card.formula and card.source and entry.summary and card.version >= 1
    fields = registry.get(name).Settings.model_fields
    assert set(card.our_choice) <= set(fields)
    assert all(field.description for field in fields.values())
    references = Path(__file__).parents[2] / "tables" / "references.bib"
    assert not card.paper or f"{{{card.paper}," in references.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EVERY)
def test_unknown_setting_names_the_nearest(name: str):
    known = list(registry.get(name).Settings.model_fields)
    with pytest.raises(UserError) as error:
        kd_methods.settings(name, {f"{known[0]}x" if known else "temperature": 1})
    assert "\n" not in str(error.value)
    assert (f"did you mean {known[0]}" if known else "known: none") in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_value_is_one_line(name: str):
    for key in registry.get(name).Settings.model_fields:
        with pytest.raises(UserError, match=rf"setting {name}\.{key}") as error:
            kd_methods.settings(name, {key: "nonsense"})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_teacher(name: str):
    student = network(pair_for(name)[1], "student")
    if registry.get(name).needs_teacher:
        with pytest.raises(UserError, match="needs a teacher"):
            kd_methods.build(name, student, None, INFO)
    else:
        method = kd_methods.build(name, student, None, INFO)
        batch = make_batch()
        outputs = student(batch.inputs, fields=method.needs.student)
        losses = method.losses(outputs, NO_OUTPUTS, batch, Progress(1, 240))
        assert losses.total().isfinite()


# Every method on every pair, variants only where sizes and numbers of stages differ.
ON_PAIRS = [
    (*case, pair)
    for case in CASES
    for pair in (PAIRS if pair_for(case[0]) == PAIRS[0] else [OWN_PAIRS[case[0]]] if case[0] in OWN_PAIRS else [])
    if not case[1] or pair in PAIRS[2:4]
]
ON_TEXT = [
    *((name, values, TEXT_PAIR) for name, values in CASES if pair_for(name) == TEXT_PAIR),
    *((name, {}, TEXT_PAIR) for name in [*NAMES, "kd@ls"] if kd_methods.card(name).modality == "any"),
    ("pkd_patient+minilm", {}, TEXT_PAIR),
    ("block_kd", {"connector": "identity"}, TEXT_PAIR),
    ("block_kd", {"distance": "dkd"}, TEXT_PAIR),
    ("block_kd", {"sample_stones": 1}, TEXT_PAIR),
    *((name, {}, ("bert_l4_h64", "bert_l2_h32")) for name in ("block_kd", "minilm", "tinybert", "rkd", "crd")),
]
ON_PAIRS += ON_TEXT
ON_PAIRS_IDS = [f"{name}{values or ''}-{'>'.join(pair)}" for name, values, pair in ON_PAIRS]


@pytest.mark.parametrize(("name", "values", "pair"), ON_PAIRS, ids=ON_PAIRS_IDS)
def test_gradients_reach_all_that_is_trained_and_nothing_else(name: str, values: dict, pair: tuple[str, str]):
    try:
        setup = Setup(name, values, pair)
    except UserError as error:
        assert name in REFUSED and REFUSED[name] in str(error) and pair != PAIRS[0]
        return
    check_gradients(setup, values)


def check_gradients(setup: Setup, values: dict) -> None:
    clear(setup.student)
    known = {id(p) for module in (setup.student, setup.method) for p in module.parameters()}
    for _ in range(6 if "sample_stones" in values or setup.method.card.name == "fcfd" else 1):
        losses = setup.step()
        assert all(term.isfinite() and term.shape == () for term in losses.terms().values())
        assert leaves(losses.total()) <= known, "a tensor outside student and method wants a gradient"
        losses.total().backward()
    for module in (setup.student, setup.method):
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), key
            else:
                assert parameter.grad is None, f"{key} is declared frozen"
    for key, parameter in setup.method.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, key
    assert all(p.grad is None and not p.requires_grad for p in setup.teacher.parameters())


@pytest.mark.parametrize("pair", [("resnet8", "vit"), ("vit", "resnet8"), ("vit", "vit")], ids=">".join)
@pytest.mark.parametrize("name", [*NAMES, *COMPOSED])
def test_with_a_transformer_it_works_or_says_why_not(name: str, pair: tuple[str, str]):
    """Its tokens are maps for the methods that match some."""
    try:
        setup = Setup(name, pair=pair)
    except UserError as error:
        assert "\n" not in str(error) and any(
            word in str(error)
            for word in ("last map", "maps", "cannot map", "only pool", "made for text", "transformers")
        )
        return
    check_gradients(setup, {})


@pytest.mark.parametrize("pair", PAIRS, ids=">".join)
def test_the_first_cell_is_the_whole_image(pair: tuple[str, str]):
    """Where the side of the map is 1, 2 or divisible by 4, the classifier on cell 0 gives the network's own logits."""
    setup = Setup("sdd_kd", {"scales": (1, 2, 4)}, pair)
    outputs = setup.outputs(Needs(student=("last_map",), teacher=("last_map", "logits")))
    cells = setup.method.cells(*outputs)
    assert [z.shape for z in cells] == [(6, 21, CLASSES)] * 2
    for z, own in zip(cells, outputs, strict=True):
        assert torch.allclose(z[:, 0], own.logits, rtol=1e-4, atol=1e-5)


def test_cells_need_the_whole_map_and_a_classifier_that_runs_on_parts():
    with pytest.raises(UserError, match="scale 1, comes first"):
        Setup("sdd_kd", {"scales": (2, 4)})
    with pytest.raises(UserError, match="only pool between"):
        Setup("sdd_dkd", pair=("vit", "resnet8"))


def test_what_reads_vectors_or_maps_works_with_a_transformer():
    for name in (
        "kd", "ofa", "rkd", "crd", "srrl", "itrd", "crd+kd",
        "block_kd", "at", "nst", "sp", "vid", "mgd", "reviewkd", "semckd", "srrl.map", "ofd",
    ):  # fmt: skip
        assert Setup(name, pair=("vit", "resnet8")).losses().total().isfinite()
        assert Setup(name, pair=("resnet8", "vit")).losses().total().isfinite()


def leaves(value: Tensor) -> set[int]:
    """Ids of the leaf tensors that a backward pass from ``value`` would reach."""
    found, seen, waiting = set(), set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [parent for parent, _ in node.next_functions]
    return found


@each_case
def test_distillation_reaches_the_student(name: str, values: dict):
    setup = Setup(name, values)
    losses = setup.losses()
    if not kd_methods.card(name).distills:
        assert not losses.distill
        return
    assert losses.distill
    first = next(p for p in setup.student.parameters())
    apart = {f"{phase.name}/" for phase in setup.method.phases() if not phase.student}
    for key, term in losses.distill.items():
        if key.startswith(tuple(apart)):
            continue
        (gradient,) = torch.autograd.grad(term, first, retain_graph=True, allow_unused=True)
        assert gradient is not None and gradient.abs().sum() > 0, key


@each_case
def test_a_step_leaves_the_teacher_alone(name: str, values: dict):
    setup = Setup(name, values)
    before = {key: value.clone() for key, value in setup.teacher.state_dict().items()}
    own = copy.deepcopy(setup.method.state_dict())
    student = {key: value.clone() for key, value in setup.student.state_dict().items()}
    optimizer = torch.optim.SGD(dict.fromkeys([*setup.student.parameters(), *setup.method.parameters()]), lr=1e-4)
    clear(setup.student)
    setup.losses().total().backward()
    optimizer.step()
    after = setup.teacher.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not setup.teacher.training
    assert not any(key.startswith(("teacher", "student")) for key in own)
    setup.student.load_state_dict(student)  # the cached network serves other tests


@each_case
def test_state_dict_round_trip(name: str, values: dict):
    setup = Setup(name, values)
    with torch.no_grad():
        for parameter in setup.method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    state = copy.deepcopy(setup.method.state_dict())
    expected = setup.losses().terms()
    torch.manual_seed(99)
    student, own = copy.deepcopy(setup.plain), copy.deepcopy(setup.plain.module.state_dict())
    fresh = kd_methods.build(name, student, setup.teacher, INFO, **values).train()
    setup.method, setup.student = fresh, fresh.adapt(student).train()
    student.module.load_state_dict(own)
    changed = setup.losses().terms()
    if state and any(parameter.requires_grad for parameter in fresh.parameters()):
        assert any(not torch.equal(changed[key], value) for key, value in expected.items())
    fresh.load_state_dict(state)
    restored = setup.losses().terms()
    assert restored.keys() == expected.keys()
    assert all(torch.equal(restored[key], value) for key, value in expected.items())


@each_case
def test_order_within_the_batch_does_not_matter(name: str, values: dict):
    setup = Setup(name, values)
    total = setup.losses().total()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    batch = setup.batch
    second = batch.second[order]
    setup.batch = Batch(batch.inputs[order], batch.labels[order], batch.indices[order], batch.task_loss, second)
    if not kd_methods.card(name).order:
        assert setup.losses().total().item() == pytest.approx(total.item(), rel=1e-4)
    setup.batch = Batch(batch.inputs[order], batch.labels, batch.indices[order], batch.task_loss, second)
    losses = setup.losses()
    if losses.task:
        assert losses.total().item() != pytest.approx(total.item(), rel=1e-5), "labels must matter"


@each_case
def test_needs_are_honest(name: str, values: dict):
    """With nothing but what it declares, a method computes the same bits."""
    setup = Setup(name, values)
    for _, needs, losses, runs in setup.parts():
        full, full_teacher = setup.outputs(needs, everything=True)
        state = copy.deepcopy(setup.method.state_dict())
        torch.manual_seed(11)
        expected = losses(full if runs else NO_OUTPUTS, full_teacher, setup.batch, setup.progress).terms()
        few, few_teacher = setup.outputs(needs)
        if "logits" not in needs.teacher:
            few_teacher = few_teacher.with_other_logits(torch.full_like(few_teacher.logits, torch.nan))
        setup.method.load_state_dict(state)
        torch.manual_seed(11)
        found = losses(few if runs else NO_OUTPUTS, few_teacher, setup.batch, setup.progress).terms()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


@each_case
def test_terms_vanish_with_their_weights(name: str, values: dict):
    """All weights scaled by 1e-6: every distillation term shrinks; at 0 they are 0, without NaN."""
    full = Setup(name, values).losses()
    tiny = Setup(name, {**values, **scaled(name, 1e-6, values)}).losses()
    zero = Setup(name, {**values, **scaled(name, 0.0, values)}).losses()
    for key, term in full.distill.items():
        assert term > 0, key
        if "/" not in key:  # a first phase has one term and no weight
            assert tiny.distill[key].item() <= 1.001e-6 * term.item(), key
            assert key not in zero.distill or zero.distill[key].item() == 0, key


def scaled(name: str, factor: float, values: dict[str, Any]) -> dict[str, Any]:
    """A method's weights, its settings that may be zero, times ``factor``."""
    if "+" in name:
        return {part: scaled(part, factor, {}) for part in name.split("+")}
    fields = registry.get(name).Settings.model_fields
    weights = [key for key, field in fields.items() if isinstance(field.default, float) and allows_zero(name, key)]
    others = (
        "warmup",
        "dkd_alpha",
        "dkd_beta",
        "alpha_penultimate",
        "alpha_intermediate",
        *OTHER_NUMBERS.get(name, ()),
    )
    return {key: factor * values.get(key, fields[key].default) for key in weights if key not in others}


OTHER_NUMBERS = {
    "wkd_l": ("decay_from",),
    "wkd_f": ("decay_from",),
    "abkd": ("alpha", "beta"),
    "crld": ("weak_threshold", "strong_threshold"),
}
"""Settings that may be zero and are no weights."""


def allows_zero(name: str, key: str) -> bool:
    try:
        kd_methods.settings(name, {key: 0.0})
    except UserError:
        return False
    return True


@pytest.mark.parametrize("size", ["least", 3])
@each_case
def test_odd_last_batches(name: str, values: dict, size: int | str):
    least = registry.get(name).needs.min_batch
    setup = Setup(name, values, size=least if size == "least" else 3)
    if size == "least" and any(needs.min_batch > least for _, needs, _, _ in setup.parts()):
        setup.batch = make_batch(text=setup.text, size=max(needs.min_batch for _, needs, _, _ in setup.parts()))
    losses = setup.losses()
    losses.total().backward()
    assert losses.total().isfinite()


def changed_logits(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    """The same outputs with other logits, in every view."""
    changed = outputs.with_other_logits(change(outputs.logits))
    return changed.with_second(changed_logits(outputs.second, change)) if outputs._second else changed


@each_case
def test_low_precision_and_extreme_logits(name: str, values: dict):
    setup = Setup(name, values)
    for _, needs, step, runs in setup.parts():
        clear(setup.student)
        clear(setup.method)
        with torch.autocast("cpu", torch.bfloat16):
            student, teacher = setup.outputs(needs)
            signs = torch.randn(2, *student.logits.shape, generator=torch.Generator().manual_seed(3)).sign() * 1e4
            torch.manual_seed(11)
            losses = step(student if runs else NO_OUTPUTS, teacher, setup.batch, setup.progress)
            far = changed_logits(student, lambda z, by=signs[0]: z + by.to(z.dtype))
            far_teacher = changed_logits(teacher, lambda z, by=signs[1]: by.to(z.dtype))
            extreme = step(far if runs else NO_OUTPUTS, far_teacher, setup.batch, setup.progress)
        for found in (losses, extreme):
            assert all(term.isfinite() for term in found.terms().values())
            assert all(term.dtype == torch.float32 for term in found.distill.values())
            found.total().backward(retain_graph=True)
        parameters = [*setup.student.parameters(), *setup.method.parameters()]
        assert all(p.grad.isfinite().all() for p in parameters if p.grad is not None)


IDENTITY = [(name, values) for name, values in CASES if kd_methods.card(name).optimum == "identity"]


@pytest.mark.parametrize(("name", "values"), IDENTITY, ids=str)
def test_no_gradient_where_student_and_teacher_agree(name: str, values: dict):
    text = pair_for(name) == TEXT_PAIR
    both = TEXT_PAIR[0] if text else "resnet8"
    teacher = network(both, "teacher")
    method = kd_methods.build(name, network(both, "student"), teacher, INFO, **values)
    assert not list(method.parameters()), "with trained parts identity is not an optimum; the card must say so"
    batch = make_batch(text=text)
    with torch.no_grad():
        target = teacher(batch.inputs).with_second(teacher(batch.second))
    units = teacher.layout.units(FIELDS)

    def noisy(of: Outputs, noise: float) -> Outputs:
        def changed(x: Any) -> Any:
            if isinstance(x, Tokens):
                return x._replace(hidden=changed(x.hidden))
            return (x * (1 + noise * torch.randn_like(x))).requires_grad_()

        kept = {u: changed(of[u]) for u in units}
        return Outputs((of.logits * (1 + noise * torch.randn_like(of.logits))).requires_grad_(), kept, teacher.layout)

    def distill(noise: float) -> tuple[float, float]:
        torch.manual_seed(5)
        outputs = noisy(target, noise).with_second(noisy(target.second, noise))
        value = total_of(method.losses(outputs, target, batch, Progress(100.0, 240)).distill)
        gradients = torch.autograd.grad(value, outputs.tensors(), allow_unused=True)
        return value.item(), sum(g.norm().item() for g in gradients if g is not None)

    (value, gradient), (off_value, off_gradient) = distill(0.0), distill(0.1)
    assert off_gradient > 0 and gradient < 1e-4 * off_gradient
    assert abs(value) < 1e-4 * off_value


def test_hint_has_no_gradient_where_the_regressed_map_agrees():
    t = torch.randn(2, 4, 3, 3)
    s = t.clone().requires_grad_()
    functional.hint(s, t).backward()
    assert s.grad is not None and not s.grad.any()


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((3, 8, 8), (5, 8, 8)), ((3, 8, 8), (5, 4, 4)), ((3, 4, 4), (5, 8, 8)), ((3, 7, 9), (5, 3, 4))],
)
def test_adapters_give_the_teachers_shape(student: tuple, teacher: tuple):
    x = torch.randn(2, *student)
    assert ConvReg(student, teacher)(x).shape[1:] == teacher
    for kind, slope in (("conv1x1", 0.0), ("conv3x3_leaky", 0.1), ("transposed", 0.0)):
        signed, rectified = (Connector(student, teacher, rectify=ends, kind=kind) for ends in (False, True))
        rectified.load_state_dict(signed.state_dict())
        values = signed(x)
        assert values.shape[1:] == teacher and values.min() < 0
        assert torch.allclose(rectified(x), torch.maximum(values, slope * values))
    with pytest.raises(UserError, match="use 'conv1x1'"):
        Connector(student, teacher, rectify=False, kind="identity")


def test_adapters_say_what_they_cannot_do():
    with pytest.raises(UserError, match="2x2 to 8x8"):
        ConvReg((3, 2, 2), (3, 8, 8))
    with pytest.raises(UserError, match="feature maps"):
        Connector((17, 64), (3, 8, 8), rectify=False)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(Connector((3, 4, 4), (3, 4, 4), rectify=False, kind="identity")(x), x)


def test_connector_initialisation():
    weight = Connector((64, 8, 8), (128, 8, 8), rectify=True).body[0].weight
    assert weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)


def test_fitnet_stage_out_of_range():
    with pytest.raises(UserError, match="3 common stages"):
        Setup("fitnet", {"hint_stage": 4})


# --- Block-KD -------------------------------------------------------------------------------------------------------

COSTS = {
    ("resnet56", "resnet20"): (5600, 125.8, 40.8, 82.8, 41.4, 0),
    ("resnet110", "resnet20"): (5600, 253.2, 40.8, 167.8, 83.9, 0),
    ("resnet110", "resnet32"): (5600, 253.2, 69.1, 167.8, 83.9, 0),
    ("resnet32x4", "resnet8x4"): (86912, 1083.0, 177.1, 721.4, 360.7, 0),
    ("wrn_40_2", "wrn_16_2"): (21952, 327.6, 101.1, 218.1, 109.1, 0),
    ("wrn_40_2", "wrn_40_1"): (11200, 327.6, 83.3, 218.1, 109.1, 0),
    ("vgg13", "vgg8"): (609024, 284.9, 96.2, 188.8, 132.2, 75.5, 0.1),
    ("vgg13", "MobileNetV2"): (688384, 284.9, 6.5, 188.8, 132.2, 75.5, 0.1),
    ("ResNet50", "MobileNetV2"): (2689536, 1298.0, 6.5, 1078.1, 742.6, 264.4, 0.2),
    ("ResNet50", "vgg8"): (1744384, 1298.0, 96.2, 1078.1, 742.6, 264.4, 0.2),
    ("resnet32x4", "ShuffleV1"): (323456, 1083.0, 38.7, 721.4, 360.7, 0),
    ("resnet32x4", "ShuffleV2"): (300160, 1083.0, 44.5, 721.4, 360.7, 0),
    ("wrn_40_2", "ShuffleV1"): (161728, 327.6, 38.7, 218.1, 109.1, 0),
}
"""Parameters of the connectors; then millions of MACs: teacher, student, what is run for each stone."""


@pytest.mark.parametrize("pair", COSTS, ids=">".join)
def test_what_stones_cost(pair: tuple[str, str]):
    """The cuts into blocks: another one would change these figures, which come from mdistiller's networks."""
    teacher, student = (build_network(name, 100).requires_grad_(False).eval() for name in pair)
    method = kd_methods.build("block_kd", student, teacher, DataInfo(50_000, 100))
    assert sum(p.numel() for p in method.parameters()) == COSTS[pair][0]
    image = torch.zeros(1, 3, 32, 32)
    found = [macs(teacher.plain(), image), macs(student.plain(), image)]
    for unit in method.units:
        with FlopCounterMode(display=False) as counter:
            teacher.resume(unit, torch.zeros(1, *teacher.shape(unit)))
        found.append(counter.get_total_flops() // 2)
    assert [value / 1e6 for value in found] == pytest.approx(COSTS[pair][1:], abs=0.07)


@pytest.mark.parametrize("pair", PAIRS, ids=">".join)
@pytest.mark.parametrize("chosen", [None, (1,), (1, 3), (-2, -1)], ids=str)
def test_one_sweep_equals_separate_passes(pair: tuple[str, str], chosen: tuple[int, ...] | None):
    setup = Setup("block_kd", {"active_stones": chosen}, pair)
    setup.method.eval()  # connectors' running statistics, so that a pass does not change the next
    student, _ = setup.outputs()
    n = len(setup.method.units)
    blocks = student.blocks[-n:]
    probes = setup.method.probes(student)
    expected_stones = range(1, n + 1) if chosen is None else sorted(i if i > 0 else n + 1 + i for i in chosen)
    assert list(probes) == [f"stone_{i}" for i in expected_stones]
    for i in expected_stones:
        feature = setup.method.connectors[str(i)](blocks[i - 1])
        for tail, tolerance in ((setup.teacher.fold_batch_norms(), 2e-6), (setup.teacher, 1e-5)):
            alone = tail.resume(setup.teacher.layout.blocks[-n:][i - 1], feature)
            assert (probes[f"stone_{i}"] - alone).norm() <= tolerance * alone.norm()


def test_without_stones_it_is_kd():
    weights = {"alpha": 0.1, "beta": 0.9, "active_stones": ()}
    block, kd = Setup("block_kd", weights).losses(), Setup("kd").losses()
    assert block.terms().keys() == kd.terms().keys()
    assert block.total().item() == pytest.approx(kd.total().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("pair", "weights"), [(PAIRS[0], [0.25, 0.5, 1]), (("vgg8", "vgg8"), [0.125, 0.25, 0.5, 1])], ids=["n3", "n4"]
)
def test_stone_weights(pair: tuple[str, str], weights: list[float]):
    assert Setup("block_kd", pair=pair).method.stone_weights == weights
    assert Setup("block_kd", {"stone_weighting": "equal"}, pair).method.stone_weights == [1.0] * len(weights)
    last_two = Setup("block_kd.lite", pair=pair).method
    assert last_two.active == [len(weights) - 1, len(weights)] and last_two.stone_weights == weights


@pytest.mark.parametrize("distance", ["kl", "dkd"])
def test_the_loss_by_definition(distance: str):
    settings = {"alpha": 0.7, "beta": 1.3, "gamma": 0.4, "distance": distance}
    setup = Setup("block_kd", settings)
    setup.method.eval()
    student, teacher = setup.outputs()
    found = setup.method.losses(student, teacher, setup.batch, setup.progress)
    y, s, t = setup.batch.labels, student.logits, teacher.logits
    stones = list(setup.method.probes(student).values())
    ensemble = sum(stones) / 3

    def d(a: Tensor, b: Tensor) -> Tensor:
        if distance == "dkd":
            return functional.dkd(a, b, y, alpha=1.0, beta=8.0, temperature=4.0)
        return functional.kd(a, b, temperature=4.0)

    def with_stones(own: Tensor, of: list[Tensor]) -> Tensor:
        return own + of[0] / 4 + of[1] / 2 + of[2]

    expected = (
        0.7 * with_stones(F.cross_entropy(s, y), [F.cross_entropy(z, y) for z in stones])
        + 1.3 * with_stones(d(s, t), [d(z, t) for z in stones])
        + 0.4 * with_stones(d(s, ensemble), [d(z, ensemble) for z in stones])
    )
    assert found.total().item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(found.task) == {"task", "stones_task"}


def test_the_ensemble_is_detached():
    """The student's term against the ensemble moves the student's own path only, never a connector."""
    setup = Setup("block_kd")
    cross = setup.losses().distill["cross"]
    connectors = list(setup.method.connectors.parameters())
    assert all(g is None for g in torch.autograd.grad(cross, connectors, retain_graph=True, allow_unused=True))
    head = list(setup.student.parameters())[-1]
    assert torch.autograd.grad(cross, head)[0].abs().sum() > 0


def test_stones_do_not_train_the_students_classifier():
    setup = Setup("block_kd")
    losses = setup.losses()
    stones = losses.task["stones_task"] + losses.distill["stones_kd"] + losses.distill["stones_cross"]
    *body, weight, bias = setup.student.parameters()
    gradients = torch.autograd.grad(stones, [*body, weight, bias], allow_unused=True)
    assert all(g is not None for g in gradients[:-2]) and gradients[-2] is None and gradients[-1] is None


OF_A_ZOO = [
    *(name for name in networks.names() if networks.modality_of(name) == "images"),
    *("timm:test_vit", "timm:test_convnext", "torchvision:mobilenet_v2"),
]


@pytest.mark.parametrize("name", OF_A_ZOO)
def test_the_last_stone_is_the_whole_backbone(name: str):
    """All that has weights before the pooling, but a normalisation that closes it, learns by the last stone alone."""
    with torch.device("meta" if name in networks.names() else "cpu"):  # what depends on what, without computing it
        student, teacher = (build_network(name, CLASSES, (3, 32, 32)) for _ in range(2))
        teacher.requires_grad_(False).eval()
        method = kd_methods.build("block_kd", student, teacher, DataInfo(100, CLASSES))
        outputs = student(student.example(), fields=method.needs.student)
        (stone,) = method.stones(outputs, [len(method.units)])
    names, parameters = zip(*student.module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(stone.sum(), [*parameters, *method.connectors.parameters()], allow_unused=True)
    missed = {name for name, gradient in zip(names, gradients, strict=False) if gradient is None}
    backbone = student.used(until=student.layout.last_map)
    norms = {
        f"{key}.{kind}" for key, part in student.module.named_modules() if "Norm" in type(part).__name__
        for kind in ("weight", "bias")
    }  # fmt: skip
    assert not (backbone & missed) - norms
    classifier = teacher.used(after=teacher.layout.last_map)
    assert teacher.used(after=method.units[-1]) - classifier <= norms, "the teacher's part of the last stone"


def test_the_last_stone_is_the_whole_encoder():
    layout = build_network("bert_l4_h64", 2).layout
    assert layout.blocks[-1] == layout.last_map


def test_sampled_stones_follow_the_global_generator():
    setup = Setup("block_kd", {"sample_stones": 1})

    def draws(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return [setup.method._sampled([1, 2, 3]) for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)
    assert {stone for drawn in draws(1) for stone in drawn} == {1, 2, 3}


def test_batch_statistics_in_the_tails():
    """As a teacher in training mode would compute, but each stone by itself and with the buffers left alone."""
    setup = Setup("block_kd", {"teacher_bn": "batch"})
    setup.method.eval()
    student, _ = setup.outputs()
    found = setup.method.stones(student, [1, 2, 3], batch_statistics=True)
    training = copy.deepcopy(setup.teacher).train()
    for i, z in enumerate(found, 1):
        feature = setup.method.connectors[str(i)](student.blocks[i - 1])
        expected = training.resume(setup.teacher.layout.blocks[i - 1], feature)
        assert torch.allclose(z, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], setup.method.stones(student, [1])[0], rtol=1e-2)


@pytest.mark.parametrize(
    ("warmup_on", "scaled"), [("gamma", {"cross"}), ("beta_gamma", {"cross", "kd"})], ids=["gamma", "beta_gamma"]
)
def test_warm_up(warmup_on: str, scaled: set[str]):
    full = Setup("block_kd").losses().terms()
    warm = Setup("block_kd", {"warmup": 4.0, "warmup_on": warmup_on}).losses().terms()
    for key, term in full.items():
        factor = 0.25 if key.removeprefix("stones_") in scaled else 1.0
        assert warm[key].item() == pytest.approx(factor * term.item(), rel=1e-6), key


@pytest.mark.parametrize(
    ("schedule", "arrived"),
    [
        ("together", [[1, 2, 3]] * 4),
        ("deep_first", [[3], [3], [2, 3], [1, 2, 3]]),
        ("shallow_first", [[1], [1], [1, 2], [1, 2, 3]]),
    ],
)
def test_stones_that_come_in_one_by_one(schedule: str, arrived: list[list[int]]):
    setup = Setup("block_kd", {"stone_schedule": schedule, "stone_epochs": 30.0})
    student, teacher = setup.outputs()
    for epoch, stones in zip((1, 30, 31, 61), arrived, strict=True):
        assert setup.method._arrived(Progress(epoch, 240)) == stones
        alone = Setup("block_kd", {"active_stones": tuple(stones)})
        for parts in (setup, alone):
            torch.manual_seed(3)
            for parameter in parts.method.parameters():
                torch.nn.init.constant_(parameter, 0.05)
        found, expected = (
            parts.method.losses(student, teacher, setup.batch, Progress(epoch, 240)).total() for parts in (setup, alone)
        )
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_stones_task_loss_has_a_factor_of_its_own():
    full, half, none = (Setup("block_kd", {"stone_task": factor}).losses() for factor in (1.0, 0.5, 0.0))
    assert torch.equal(full.task["task"], none.task["task"])
    assert half.task["stones_task"].item() == pytest.approx(full.task["stones_task"].item() / 2, rel=1e-6)
    assert none.task["stones_task"].item() == 0
    assert all(torch.equal(none.distill[key], term) for key, term in full.distill.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"active_stones": (4,)}, "stones 1 to 3"),
        ({"active_stones": (0,)}, "no stone 0"),
        ({"active_stones": (1,), "sample_stones": 2}, "only 1 stones"),
        ({"connector": "identity"}, "use 'conv1x1'"),
    ],
    ids=str,
)
def test_block_kd_refuses(values: dict, message: str):
    with pytest.raises(UserError, match=message):
        Setup("block_kd", values, ("vgg8", "resnet8"))


# --- CRD and modifiers ----------------------------------------------------------------------------------------------


def test_crd_resumes_exactly():
    """The banks, the normalisation and everything else that a step leaves behind is in the state."""
    setup = Setup("crd")
    setup.method.losses(*setup.outputs(), setup.batch, setup.progress)
    state = copy.deepcopy(setup.method.state_dict())
    expected = setup.losses().total()
    torch.manual_seed(5)
    setup.method = kd_methods.build("crd", network("resnet8", "student"), setup.teacher, INFO).train()
    setup.method.load_state_dict(state)
    assert torch.equal(setup.losses().total(), expected)


def test_crd_draws_other_classes():
    method: Any = Setup("crd").method
    labels = torch.arange(CLASSES)
    drawn = INFO.labels[method._draw(labels)]
    assert drawn.shape == (CLASSES, 90) and (drawn != labels.unsqueeze(1)).all() and len(drawn.unique()) == CLASSES


def test_modifiers():
    assert "kd@ls" not in kd_methods.available() and registry.get("kd@ls") is registry.get("kd@ls")
    assert kd_methods.card("dkd@ls").title == "DKD + LS"
    assert kd_methods.settings("kd@ls").kd == 9.0 and kd_methods.settings("kd").kd == 0.9
    for name, message in {
        "fitnet@ls": "reads stages",
        "student@ls": "no teacher",
        "kd@ls@ls": "has that already",
        "dkd@lss": "did you mean dkd@ls",
    }.items():
        with pytest.raises(UserError, match=message):
            registry.get(name)
    plain, standard = Setup("kd").losses(), Setup("kd@ls", {"kd": 1.0}).losses()
    assert torch.equal(plain.task["task"], standard.task["task"])
    setup = Setup("kd@ls", {"kd": 1.0})
    student, teacher = setup.outputs()
    term = functional.logit_standardized_kd(student.logits, teacher.logits, temperature=2.0)
    assert torch.allclose(standard.distill["kd"], term)


def test_mlld_standardises_its_kd_terms_alone():
    plain, changed = Setup("mlld", {"kd": 1.0}).losses(), Setup("mlld@ls", {"kd": 1.0, "temperature": 4.0}).losses()
    for name, term in plain.terms().items():
        assert torch.equal(term, changed.terms()[name]) == (name != "instance"), name


def test_mlld_by_definition():
    """The released code: m and c are the shares up to the median, and strong terms at 2 and 6 read the weak view."""
    setup = Setup("mlld", {"ce": 0.3, "kd": 0.7})
    student, teacher = setup.outputs()
    weak, strong = (student.logits, teacher.logits), (student.second.logits, teacher.second.logits)
    p = teacher.logits.softmax(1)
    m = (p.max(1).values <= p.max(1).values.quantile(0.5)).float().mean()
    c = (p.sum(0) <= p.sum(0).quantile(0.5)).float().mean()
    expected = {
        "instance": sum(m * functional.kd(*weak, temperature=t) for t in (4, 3, 5, 2, 6))
        + sum(functional.kd(*strong, temperature=t) for t in (4, 3, 5))
        + sum(functional.kd(*weak, temperature=t) for t in (2, 6)),
        "class": sum(c * functional.class_correlation(*weak, temperature=t) for t in (4, 3, 5, 2, 6)),
        "batch": sum(m * functional.batch_correlation(*weak, temperature=t) for t in (4, 3, 5, 2, 6)),
    }
    found = setup.method.losses(student, teacher, setup.batch, setup.progress)
    for name, value in expected.items():
        assert found.distill[name].item() == pytest.approx(0.7 * value.item(), rel=1e-5)
    both = sum(F.cross_entropy(view[0], setup.batch.labels) for view in (weak, strong))
    assert found.task["task"].item() == pytest.approx(0.3 * both.item(), rel=1e-6)
    assert m.item() == 0.5 and c.item() == 0.5


# --- combinations ----------------------------------------------------------------------------------------------------


def test_a_combination_is_the_first_methods_loss_and_the_others_distillation():
    both, crd, kd = (Setup(name).losses() for name in ("sp+kd", "sp", "kd"))
    assert both.terms().keys() == {"task", "sp.similarity", "kd.kd"}
    assert torch.equal(both.task["task"], crd.task["task"])
    assert torch.equal(both.distill["sp.similarity"], crd.distill["similarity"])
    assert torch.equal(both.distill["kd.kd"], kd.distill["kd"])
    weighted = Setup("sp+kd", {"kd": {"kd": 2.7}}).losses()
    assert weighted.distill["kd.kd"].item() == pytest.approx(3 * kd.distill["kd"].item(), rel=1e-6)


def test_a_combination_needs_what_its_parts_need():
    setup = Setup("block_kd+crd+mlld")
    needs = setup.method.needs
    assert set(needs.student) == {"blocks", "pooled"} and "logits" in needs.teacher and needs.views == 2
    assert set(setup.losses().task) == {"task", "stones_task"}
    assert set(Setup("crd+block_kd").losses().task) == {"task", "block_kd.stones_task"}
    assert list(setup.method.probes(setup.outputs()[0])) == [f"block_kd.stone_{i}" for i in (1, 2, 3)]
    assert [phase.name for phase in Setup("ab+ft").method.phases()] == ["boundaries", "paraphraser"]


def test_a_combination_has_the_phase_needs_of_its_parts():
    ab, ft = registry.get("ab").phase_needs, registry.get("ft").phase_needs
    assert ab is not None and ft is not None and registry.get("ab+ft").phase_needs == ab.joined(ft)
    assert registry.get("sp+tinybert").phase_needs == registry.get("tinybert").phase_needs
    assert registry.get("sp+kd").phase_needs is None
    assert "in the first phase student: preacts" in descriptions.reads(registry.get("ab+kd"))


def test_family_and_modality_are_two_facts():
    fgd = kd_methods.card("fgd")
    assert (fgd.family, fgd.modality) == ("feature", "detection")
    assert kd_methods.card("block_kd.fpn").family == kd_methods.card("block_kd").family == "blockwise"
    mine = dataclasses.replace(fgd, name="mine", family="detection")
    with pytest.raises(UserError, match="has the family 'detection'; families are logit, feature"):
        registry.register(type("Mine", (Method,), {"card": mine}))


def test_the_first_method_may_change_the_network_and_the_others_see_it_changed():
    setup = Setup("simkd+cat_kd")
    assert "simkd_projector" in setup.student.units
    alone = Setup("simkd")
    assert setup.losses().distill["simkd.feature"].item() == pytest.approx(
        alone.losses().distill["feature"].item(), rel=1e-5
    )
    setup.student.eval(), setup.method.eval()
    x = setup.batch.inputs
    assert torch.allclose(setup.method.deployed(setup.student)(x), setup.student(x, fields=()).logits)


@pytest.mark.parametrize("name", ["norm+fitnet", "simkd+cat_kd", "norm+crd"])
def test_a_combination_is_built_where_the_student_is(name: str):
    """On a GPU, say; here on the device that keeps shapes alone."""
    student, teacher = (
        copy.deepcopy(network(n, role)).to("meta") for n, role in (("resnet8", "student"), ("resnet14", "teacher"))
    )
    for view in (student, teacher):
        view._shapes.clear()
    method = kd_methods.build(name, student, teacher, INFO)
    assert {p.device.type for p in method.adapt(student).parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fitnet.paper@ls", "has a first phase"),
        ("kd+simkd", "'simkd' changes the network and has to come first"),
        ("kd+kd", "has 'kd' twice"),
        ("kd+student", "no distillation terms"),
        ("crd+kdd", "unknown method 'kdd'"),
        ("crd+fitnet@ls", "reads stages"),
    ],
)
def test_impossible_combinations(name: str, message: str):
    with pytest.raises(UserError, match=message):
        registry.get(name)


def test_settings_of_a_combination_are_checked_part_by_part():
    assert kd_methods.settings("crd+kd", {"kd": {"temperature": 2}}).model_dump()["kd"]["temperature"] == 2.0
    for values, message in {
        "kd.temprature": "did you mean temperature",
        "dkd": "unknown setting of method 'crd.kd' 'dkd'",
    }.items():
        part, _, key = values.partition(".")
        with pytest.raises(UserError, match=message):
            kd_methods.settings("crd+kd", {part: {key: 1.0}})
    assert registry.get("crd+kd") is registry.get("crd+kd") and registry.parts("crd+kd@ls") == ("crd", "kd")
