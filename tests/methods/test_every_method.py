"""What every method keeps to: gradients, needs, state, order of the batch, low precision."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.method_setup import (
    CASES,
    CLASSES,
    COMPOSED,
    EVERY,
    INFO,
    NAMES,
    OWN_PAIRS,
    PAIRS,
    REFUSED,
    TEXT_PAIR,
    Setup,
    clear,
    each_case,
    make_batch,
    network,
    pair_for,
    total_of,
)
from torch import Tensor, nn

import kd_methods
from kd_methods import registry
from kd_methods.contract import (
    FIELDS,
    NO_OUTPUTS,
    Batch,
    Needs,
    Outputs,
    Progress,
    Tokens,
)
from kd_methods.errors import UserError
from kd_methods.views.traced import leaves


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
    cited = bool(card.paper) and f"{{{card.paper}," in references.read_text(encoding="utf-8")
    assert cited or name == "student"


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


SCHEDULED = [name for name in NAMES if "progress." in inspect.getsource(inspect.getmodule(registry.get(name)))]


@pytest.mark.parametrize("name", SCHEDULED)
def test_an_epoch_of_a_shortened_run_has_the_mean_weight_of_those_it_stands_for(name: str):
    def distill(*progress: float) -> dict[str, float]:
        setup.progress = Progress(*progress)
        return {key: term.item() for key, term in setup.losses().distill.items()}

    setup, span = Setup(name), 24
    for last in (span, 240):
        whole = [distill(epoch, 240) for epoch in range(last - span + 1, last + 1)]
        for key, term in distill(last, 240, span).items():
            assert term == pytest.approx(sum(terms[key] for terms in whole) / span, rel=1e-4), key


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
    zero = {id(bias) for bias in cancelled(setup.method)}
    for key, parameter in setup.method.named_parameters():
        assert not parameter.requires_grad or id(parameter) in zero or parameter.grad.abs().sum() > 0, key
    assert all(p.grad is None and not p.requires_grad for p in setup.teacher.parameters())


def cancelled(method: nn.Module) -> list[Tensor]:
    """Biases that a batch-norm takes away at once: what gradient they have is rounding, with torch 2.6 often none."""
    chains = (list(chain) for chain in method.modules() if isinstance(chain, nn.Sequential))
    followed = ((layer, after) for chain in chains for layer, after in pairwise(chain))
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    return [
        layer.bias for layer, after in followed if isinstance(after, norms) and getattr(layer, "bias", None) is not None
    ]


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
    for z, output in zip(cells, outputs, strict=True):
        assert torch.allclose(z[:, 0], output.logits, rtol=1e-4, atol=1e-5)


def test_cells_need_the_whole_map_and_a_classifier_that_runs_on_parts():
    with pytest.raises(UserError, match="scale 1, comes first"):
        Setup("sdd_kd", {"scales": (2, 4)})
    with pytest.raises(UserError, match="each scale once"):
        Setup("sdd_kd", {"scales": (1, 2, 1)})
    with pytest.raises(UserError, match="only pool between"):
        Setup("sdd_dkd", pair=("vit", "resnet8"))


def test_what_reads_vectors_or_maps_works_with_a_transformer():
    for name in (
        "kd", "ofa", "rkd", "crd", "srrl", "itrd", "crd+kd",
        "block_kd", "at", "nst", "sp", "vid", "mgd", "reviewkd", "semckd", "srrl.map", "ofd",
    ):  # fmt: skip
        assert Setup(name, pair=("vit", "resnet8")).losses().total().isfinite()
        assert Setup(name, pair=("resnet8", "vit")).losses().total().isfinite()


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
    method_before = copy.deepcopy(setup.method.state_dict())
    student = {key: value.clone() for key, value in setup.student.state_dict().items()}
    optimizer = torch.optim.SGD(dict.fromkeys([*setup.student.parameters(), *setup.method.parameters()]), lr=1e-4)
    clear(setup.student)
    setup.losses().total().backward()
    optimizer.step()
    after = setup.teacher.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not setup.teacher.training
    assert not any(key.startswith(("teacher", "student")) for key in method_before)
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
    student, weights = copy.deepcopy(setup.plain), copy.deepcopy(setup.plain.module.state_dict())
    fresh = kd_methods.build(name, student, setup.teacher, INFO, **values).train()
    setup.method, setup.student = fresh, fresh.adapt(student).train()
    student.module.load_state_dict(weights)
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
    for _, needs, losses, runs in setup.all_phases():
        full, full_teacher = setup.outputs(needs, everything=True)
        state = copy.deepcopy(setup.method.state_dict())
        torch.manual_seed(11)
        expected = losses(full if runs else NO_OUTPUTS, full_teacher, setup.batch, setup.progress).terms()
        few, few_teacher = setup.outputs(needs)
        if "logits" not in needs.teacher:
            few_teacher = few_teacher.with_other_logits(torch.full_like(few_teacher.logits, torch.nan))
        setup.method.load_state_dict(state)
        torch.manual_seed(11)
        terms = losses(few if runs else NO_OUTPUTS, few_teacher, setup.batch, setup.progress).terms()
        assert all(torch.equal(terms[key], value) for key, value in expected.items())


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
        return {method: scaled(method, factor, {}) for method in name.split("+")}
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
    "anc": ("dropout",),
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
    if size == "least" and any(needs.min_batch > least for _, needs, _, _ in setup.all_phases()):
        setup.batch = make_batch(text=setup.text, size=max(needs.min_batch for _, needs, _, _ in setup.all_phases()))
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
    for _, needs, step, runs in setup.all_phases():
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
        for computed in (losses, extreme):
            assert all(term.isfinite() for term in computed.terms().values())
            assert all(term.dtype == torch.float32 for term in computed.distill.values())
            computed.total().backward(retain_graph=True)
        parameters = [*setup.student.parameters(), *setup.method.parameters()]
        assert all(p.grad.isfinite().all() for p in parameters if p.grad is not None)


IDENTITY = [(name, values) for name, values in CASES if kd_methods.card(name).optimum == "identity"]


@pytest.mark.parametrize(("name", "values"), IDENTITY, ids=str)
def test_no_gradient_where_student_and_teacher_agree(name: str, values: dict):
    text = pair_for(name) == TEXT_PAIR
    both = TEXT_PAIR[0] if text else "resnet8"
    teacher = network(both, "teacher")
    method = kd_methods.build(name, network(both, "student"), teacher, INFO, **values)
    assert not list(method.parameters()), "with trained modules identity is not an optimum; the card must say so"
    batch = make_batch(text=text)
    with torch.no_grad():
        target = teacher(batch.inputs).with_second(teacher(batch.second))
    units = teacher.layout.units(FIELDS)

    def noisy(of: Outputs, noise: float) -> Outputs:
        def changed(x: Any) -> Any:
            if isinstance(x, Tokens):
                return x._replace(hidden=changed(x.hidden))
            return (x * (1 + noise * torch.randn_like(x))).requires_grad_()

        features = {u: changed(of[u]) for u in units}
        return Outputs(
            (of.logits * (1 + noise * torch.randn_like(of.logits))).requires_grad_(), features, teacher.layout
        )

    def distill(noise: float) -> tuple[float, float]:
        torch.manual_seed(5)
        outputs = noisy(target, noise).with_second(noisy(target.second, noise))
        value = total_of(method.losses(outputs, target, batch, Progress(100.0, 240)).distill)
        gradients = torch.autograd.grad(value, outputs.tensors(), allow_unused=True)
        return value.item(), sum(g.norm().item() for g in gradients if g is not None)

    (value, gradient), (off_value, off_gradient) = distill(0.0), distill(0.1)
    assert off_gradient > 0 and gradient < 1e-4 * off_gradient
    assert abs(value) < 1e-4 * off_value
