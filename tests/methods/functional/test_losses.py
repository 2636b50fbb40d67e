"""The pure losses: against the references' golden values, straightforward formulas, and in low precision."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_methods import functional

GOLDENS = Path(__file__).parents[2] / "goldens"
ENTRIES: dict[str, Any] = json.loads((GOLDENS / "losses.json").read_text())
CLOSED_FORM: list[dict[str, Any]] = json.loads((GOLDENS / "closed_form.json").read_text())  # test_losses_closed_form.py

Call = Callable[[list[Tensor], list[Tensor], list[Tensor], dict[str, Any]], Tensor]


def plain(name: str, **renamed: str) -> Call:
    """One student and one teacher tensor, then labels; ``renamed`` maps our keywords to the entry's parameters."""
    return lambda s, t, y, p: getattr(functional, name)(*s, *t, *y, **{ours: p[key] for ours, key in renamed.items()})


def lists(name: str, **renamed: str) -> Call:
    """Lists of student and of teacher tensors."""
    return lambda s, t, y, p: getattr(functional, name)(s, t, **{ours: p[key] for ours, key in renamed.items()})


T = {"temperature": "temperature"}
# Golden entry (up to its parameters) -> function and call; an entry is tested as soon as its function exists.
CALLS: dict[str, tuple[str, Call]] = {
    "kd": ("kd", plain("kd", **T)),
    "dkd": ("dkd", plain("dkd", alpha="alpha", beta="beta", **T)),
    "dist": ("dist", plain("dist", beta="beta", gamma="gamma", temperature="tau")),
    "nkd": ("nkd", plain("nkd", gamma="gamma", **T)),
    "ofa": ("ofa", plain("ofa", eps="eps", **T)),
    "lskd": ("logit_standardized_kd", plain("logit_standardized_kd", **T)),
    "mlkd_class": ("class_correlation", plain("class_correlation", **T)),
    "mlkd_batch": ("batch_correlation", plain("batch_correlation", **T)),
    "ttm": ("ttm", plain("ttm", power="l")),
    "wttm": ("wttm", plain("wttm", power="l")),
    "at": ("attention_transfer", lists("attention_transfer", p="p")),
    "nst": ("nst", lists("nst")),
    "pkt": ("pkt", plain("pkt")),
    "rkd": ("rkd", plain("rkd", distance_weight="distance_weight", angle_weight="angle_weight")),
    "sp": ("similarity_preserving", plain("similarity_preserving")),
    "kdsvd": ("kdsvd", lists("kdsvd", k="k")),
    "reviewkd_hcl": ("hierarchical_context", lists("hierarchical_context")),
    "cc": ("correlation_congruence", plain("correlation_congruence")),
    "ft": ("factor_transfer", plain("factor_transfer", p="p1")),
    "ab": ("activation_boundary", lists("activation_boundary", margin="margin")),
    "fsp": ("fsp", lists("fsp")),
    "cat_kd": ("class_activation", plain("class_activation", resolution="cam_resolution", normalize="normalize")),
}


def call_of(entry: str) -> tuple[str, Call]:
    return CALLS[max((key for key in CALLS if entry == key or entry.startswith(f"{key}_")), key=len)]


PRESENT = [entry for entry in ENTRIES if hasattr(functional, call_of(entry)[0])]


# Checked below against their definitions instead.
NO_GOLDEN = {
    "hint",
    "channel_wise",  # tests/detection/test_detection_losses.py
    "focal_features",
    "localization",
    "near_region",
    "object_masks",
    "pearson",
    "place_classes",
    "valuable_region",
    "word_matching",  # tests/methods/feature/test_letkd.py
    "decision_matching",
    "cosine_gram",  # tests/methods/feature/test_feature_only.py
    "attention_relation",  # tests/tasks/test_text.py
    "attention_scores",
    "hidden_states",
    "patient_states",
    "wsld",
    "standardize",
    "kernel_congruence",
    "bank_scores",
    "noise_contrastive",
    "discriminative_consistent",
    "cosine_similarity",
    "attention_distance",
    "factor_direction",
    "partial_l2",
    "gaussian_nll",
    "correlation_information",
    "mutual_information",
    "told_apart",  # tests/methods/test_recent_methods.py
}


def test_every_function_has_a_golden_value():
    called = {call_of(entry)[0] for entry in PRESENT} | {row["function"] for row in CLOSED_FORM}
    assert set(functional.__all__) - called == NO_GOLDEN


@pytest.mark.parametrize("entry", PRESENT)
def test_golden(entry: str, golden_inputs: dict[str, Tensor]):
    golden = ENTRIES[entry]
    given = {name: golden_inputs[name].clone() for name in golden["inputs"]}
    students = {name: given[name].requires_grad_() for name in golden["grad_l2"]}
    labels = [x for name, x in given.items() if name == "target"]
    teachers = [x.requires_grad_() for name, x in given.items() if name not in students and name != "target"]
    value = call_of(entry)[1](list(students.values()), teachers, labels, golden["params"])
    value.backward()
    tolerance = 1e-3 if entry == "kdsvd" else 1e-5
    assert value.item() == pytest.approx(golden["value"], rel=tolerance)
    for name, x in students.items():
        assert x.grad is not None and x.grad.norm().item() == pytest.approx(golden["grad_l2"][name], rel=tolerance)
    assert all(x.grad is None for x in teachers), "the teacher is a constant"


def test_kd_by_definition(golden_inputs: dict[str, Tensor]):
    s, t = golden_inputs["logits_student"].double(), golden_inputs["logits_teacher"].double()
    p, q = (t / 3).softmax(1), (s / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(functional.kd(s, t, temperature=3.0), expected, rtol=1e-12)


def test_dkd_by_definition(golden_inputs: dict[str, Tensor]):
    s, t = golden_inputs["logits_student"].double(), golden_inputs["logits_teacher"].double()
    labels = golden_inputs["target"]
    expected = 0.0
    for i, y in enumerate(labels.tolist()):
        p, q = (t[i] / 4).softmax(0), (s[i] / 4).softmax(0)
        rest_p, rest_q = torch.cat([p[:y], p[y + 1 :]]), torch.cat([q[:y], q[y + 1 :]])
        binary = p[y] * (p[y] / q[y]).log() + (1 - p[y]) * ((1 - p[y]) / (1 - q[y])).log()
        rest_p, rest_q = rest_p / rest_p.sum(), rest_q / rest_q.sum()
        expected += 16 * (0.5 * binary + 3 * (rest_p * (rest_p / rest_q).log()).sum()) / len(labels)
    loss = functional.dkd(s, t, labels, alpha=0.5, beta=3.0, temperature=4.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


def test_dkd_with_equal_mass_weights_is_kd(golden_inputs: dict[str, Tensor]):
    """Equation 5 of the paper: KD = target term + (1 - p_t[y]) * non-target term, here on one row."""
    s, t, y = (golden_inputs[name][:1] for name in ("logits_student", "logits_teacher", "target"))
    s, t = s.double(), t.double()
    beta = 1 - (t / 4).softmax(1)[0, y].item()
    decoupled = functional.dkd(s, t, y, alpha=1.0, beta=beta, temperature=4.0)
    assert decoupled.item() == pytest.approx(functional.kd(s, t, temperature=4.0).item(), rel=1e-9)


def test_hint_is_a_mean_square():
    s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.allclose(functional.hint(s, t), ((s - t) ** 2).sum() / s.numel())


LOGITS = {
    "kd": lambda s, t, y: functional.kd(s, t, temperature=1.0),
    "dkd": lambda s, t, y: functional.dkd(s, t, y, alpha=1.0, beta=8.0, temperature=1.0),
}
FEATURES = {
    "hint": lambda s, t: functional.hint(s, t),
    "attention_transfer": lambda s, t: functional.attention_transfer([s], [t]),
    "attention_distance": lambda s, t: functional.attention_distance([s], [t]),
    "factor_direction": lambda s, t: functional.factor_direction(s, t),
    "nst": lambda s, t: functional.nst([s], [t]),
    "kdsvd": lambda s, t: functional.kdsvd([s, s.flip(1) ** 2], [t, t.flip(1) ** 2]),
    "hierarchical_context": lambda s, t: functional.hierarchical_context([s], [t]),
    "class_activation": lambda s, t: functional.class_activation(s, t),
    "factor_transfer": lambda s, t: functional.factor_transfer(s, t),
    "fsp": lambda s, t: functional.fsp([s, s.flip(1)], [t, t.flip(1)]),
    "similarity_preserving": lambda s, t: functional.similarity_preserving(s, t),
    "pkt": lambda s, t: functional.pkt(s.flatten(1), t.flatten(1)),
    "rkd": lambda s, t: functional.rkd(s.flatten(1), t.flatten(1), distance_weight=25.0, angle_weight=50.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOGITS)
def test_extreme_logits(name: str, dtype: torch.dtype):
    labels = torch.tensor([0, 1, 2, 3, 4])
    signs = torch.randint(0, 2, (2, 5, 7), generator=torch.Generator().manual_seed(0)) * 2 - 1
    for s, t in [(signs[0] * 1e4, signs[1] * 1e4), (signs[0] * 1e4, signs[0] * 1e4), (signs[0] * 1e4, signs[1] * 0.0)]:
        s = s.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = LOGITS[name](s, t.to(dtype), labels)
        value.backward()
        assert value.dtype == torch.float32 and value.isfinite() and s.grad is not None and s.grad.isfinite().all()


@pytest.mark.parametrize("name", FEATURES)
def test_degenerate_features(name: str):
    """Dead samples, two equal samples and student ≡ teacher: finite and bounded gradients, zero in the last case."""
    t = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    dead, twins = t.clone(), t.clone()
    dead[1] = 0
    twins[2] = twins[0]
    sizes = {}
    for label, features in {"dead": dead, "all dead": t * 0, "twins": twins, "equal": t, "other": t.flip(0)}.items():
        s = features.clone().requires_grad_()
        FEATURES[name](s, t).backward()
        assert s.grad is not None and s.grad.isfinite().all(), label
        sizes[label] = s.grad.norm().item()
    assert sizes["equal"] < 1e-5 * sizes["other"]
    assert max(sizes["dead"], sizes["all dead"]) < 100 * sizes["other"], sizes


@pytest.mark.parametrize("name", FEATURES)
def test_full_precision_under_autocast(name: str):
    s, t = torch.rand(2, 6, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        inside = FEATURES[name](s, t)
    assert torch.equal(inside, FEATURES[name](s, t))


def test_optima_that_the_cards_declare(golden_inputs: dict[str, Tensor]):
    """Zero gradient where the card says the optimum lies, and not at student = teacher unless it lies there."""
    t, y = golden_inputs["logits_teacher"].double(), golden_inputs["target"]
    hot = torch.nn.functional.one_hot(y, t.shape[1]).double()
    at: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (lambda s: functional.ttm(s, t, power=0.1), 0.1 * t),
        (lambda s: functional.wttm(s, t, power=0.1), 0.1 * t),
        (lambda s: functional.ofa(s, t, y, eps=1.5), ((t.softmax(1) + hot) ** 1.5 - hot).log()),
        (lambda s: functional.nkd(s, t, y, gamma=1.5, temperature=1.0), t + 100 * hot),
        (lambda s: functional.wsld(s, t, y, temperature=2.0), t),
        (lambda s: functional.dist(s, t, beta=1.0, gamma=1.0, eps=0.0), t),
    ]
    for loss, optimum in at:
        sizes = []
        for s in (optimum, optimum + torch.randn(t.shape, generator=torch.Generator().manual_seed(0))):
            s = s.clone().requires_grad_()
            loss(s).backward()
            assert s.grad is not None
            sizes.append(s.grad.norm().item())
        assert sizes[0] < 1e-6 * sizes[1] or sizes[0] < 1e-12


def test_contrasts_prefer_matching_pairs():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).double()
    cosines = 5 * functional.cosine_similarity(x, x)
    order = torch.tensor([1, 2, 3, 4, 5, 0])
    matched, mixed = (functional.discriminative_consistent(c, alpha=0.5) for c in (cosines, cosines[order]))
    expected = -(cosines.softmax(1).diagonal()).log().mean()  # a symmetric matrix has no inconsistency
    assert 0 < matched < mixed and torch.allclose(matched, expected)
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double()
    h = scores.exp() / (scores.exp() + 5 / 50)
    expected = -(h[:, 0].log() + (1 - h[:, 1:]).log().sum(1)).mean()
    assert torch.allclose(functional.noise_contrastive(scores, num_samples=50), expected)


def test_standardize_by_definition(golden_inputs: dict[str, Tensor]):
    z = golden_inputs["logits_student"].double()
    expected = (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)
    assert torch.allclose(functional.standardize(z), expected)
    flat = torch.ones(2, 5, requires_grad=True)
    functional.standardize(flat).sum().backward()
    assert flat.grad is not None and not flat.grad.any()


def test_wsld_by_definition(golden_inputs: dict[str, Tensor]):
    s, t = golden_inputs["logits_student"].double(), golden_inputs["logits_teacher"].double()
    labels = golden_inputs["target"]
    expected = 0.0
    for i, y in enumerate(labels.tolist()):
        weight = 1 - math.exp(-s[i].log_softmax(0)[y] / t[i].log_softmax(0)[y])
        soft = -((t[i] / 3).softmax(0) * (s[i] / 3).log_softmax(0)).sum()
        expected += 9 * weight * soft.item() / len(labels)
    loss = functional.wsld(s, t, labels, temperature=3.0, eps=0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_kernel_congruence_by_definition():
    """The Taylor series of exp(-gamma |a - b|^2) on unit vectors, up to the given power; for high powers the kernel."""
    s, t = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).double()
    for order, tolerance in ((2, None), (30, 1e-12)):
        matrices = []
        for x in (s, t):
            x = x / x.norm(dim=1, keepdim=True)
            cosines = x @ x.t()
            series = sum((0.8 * cosines) ** p / float(math.factorial(p)) for p in range(order + 1)) * math.exp(-0.8)
            if tolerance:
                kernel = torch.exp(-0.4 * (x[:, None] - x[None]).pow(2).sum(2))
                assert torch.allclose(series, kernel, rtol=tolerance)
            matrices.append(series)
        expected = (matrices[0] - matrices[1]).pow(2).sum() / 25
        assert torch.allclose(functional.kernel_congruence(s, t, gamma=0.4, order=order), expected, rtol=1e-12)


def test_bank_scores_by_definition():
    draws = torch.Generator().manual_seed(0)
    embedding, bank = torch.randn(3, 4, generator=draws).double(), torch.randn(9, 4, generator=draws).double()
    picks = torch.randint(0, 9, (3, 5), generator=draws)
    scores = functional.bank_scores(embedding, bank, picks, temperature=0.1)
    for i in range(3):
        for j in range(5):
            expected = (embedding[i] / embedding[i].norm()) @ bank[picks[i, j]] / 0.1
            assert scores[i, j].item() == pytest.approx(expected.item(), rel=1e-12)


def test_attention_distance_by_definition():
    """Equation 2 of the paper with beta = 10^3 / (positions x batch), over 10^3."""
    s, t = torch.randn(2, 3, 4, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    expected = 0.0
    for i in range(3):
        a, b = (x[i].abs().pow(2).sum(0).flatten() for x in (s, t))
        expected += (a / a.norm() - b / b.norm()).norm().item() / (2 * 10 * 3)
    distance = functional.attention_distance([s, s], [t, t])
    assert distance.item() == pytest.approx(2 * expected, rel=1e-12)


def test_factor_direction_by_definition():
    s, t = torch.randn(2, 3, 4, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    expected = sum((s[i] / s[i].norm() - t[i] / t[i].norm()).abs().mean().item() for i in range(3)) / 3
    assert functional.factor_direction(s, t).item() == pytest.approx(expected, rel=1e-12)


def test_partial_l2_by_definition():
    s, t = torch.randn(2, 3, 4, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    margin = -torch.rand(4, generator=torch.Generator().manual_seed(1)).double()
    expected = 0.0
    for i, c, y, x in itertools.product(range(3), range(4), range(2), range(5)):
        target = max(t[i, c, y, x].item(), margin[c].item())
        if not s[i, c, y, x] <= target <= 0:
            expected += (s[i, c, y, x].item() - target) ** 2 / 3
    assert functional.partial_l2(s, t, margin).item() == pytest.approx(expected, rel=1e-12)


def test_gaussian_nll_by_definition():
    mean, target = torch.randn(2, 3, 4, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    theta = torch.randn(4, generator=torch.Generator().manual_seed(1)).double()
    normal = torch.distributions.Normal(mean, (theta.exp().log1p() + 1e-5).sqrt().view(1, 4, 1, 1))
    expected = -normal.log_prob(target).mean() - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(functional.gaussian_nll(mean, target, theta, eps=1e-5), expected, rtol=1e-12)


def test_the_terms_of_itrd_by_definition():
    s, t = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    total = sum(abs(5 / 6 * torch.corrcoef(torch.stack([s[:, i], t[:, i]]))[0, 1].item() - 1) ** 3 for i in range(3))
    terms = functional.correlation_information(s, t, alpha=1.5)
    assert terms.item() == pytest.approx(math.log2(total), rel=1e-10)
    cosines = [torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2) for x in (s, t)]
    marginal, joint = cosines[0] / 6, cosines[0] * cosines[1] / 6
    assert torch.allclose(functional.mutual_information(s, t), (marginal**2).sum() - (joint**2).sum(), rtol=1e-10)
