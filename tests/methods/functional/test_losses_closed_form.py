"""The pure losses whose golden values belong to inputs in closed form: values, gradients, and what goes wrong easily.

The values are those of the methods' reference code in fp64, except where a row says that they come from the formula.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_methods import functional


def grid(*sizes: int, by: tuple[float, ...], shift: float = 0.0) -> Tensor:
    """shift + sum over dimensions of factor * index, in fp64."""
    indices = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in sizes), indexing="ij")
    return sum((factor * index for factor, index in zip(by, indices, strict=True)), torch.tensor(shift).double())


def student_map(side: int) -> Tensor:
    return grid(4, 5, side, side, by=(0.3, 0.5, 0.7, 1.1)).sin()


def teacher_map(side: int) -> Tensor:
    return grid(4, 5, side, side, by=(0.2, 0.4, 0.6, 0.9)).cos()


@functools.cache
def inputs() -> dict[str, Tensor]:
    made = {
        "zs": 2 * grid(4, 6, by=(0.7, 1.3), shift=0.2).sin(),
        "zt": 3 * grid(4, 6, by=(0.5, 0.9)).cos(),
        "zs2": 2 * grid(4, 6, by=(0.7, 1.3), shift=0.5).sin(),
        "zt2": 3 * grid(4, 6, by=(0.5, 0.9), shift=0.4).cos(),
        "y": torch.tensor([1, 3, 5, 1]),
        "Fs": student_map(4),
        "Ft": teacher_map(4),
        "Fs_sdd": student_map(8),
        "Ft_sdd": teacher_map(8),
        "ones": torch.ones(4).double(),
        "times": torch.tensor([0, 100, 200, 400]),
        "mask": torch.ones(4, 3).bool(),
        "cost": 1 - torch.exp(-grid(6, 6, by=(1.0, -1.0)).abs() / 5),
    }
    for side in "st":
        map_of_side = made[f"F{side}"]
        made[f"f{side}"] = map_of_side.mean((2, 3))
        made[f"U{side}"] = map_of_side[:, :, :2, :2].clone()
        made[f"G{side}"] = map_of_side @ map_of_side
    made["cs"], made["cs2"] = made["zs"] / 2, made["zs2"] / 2
    for name, shift in (("Q", 0.0), ("K", 0.5), ("V", 1.0)):
        made[f"{name}s"] = grid(4, 3, 4, by=(0.3, 0.7, 0.11), shift=shift).sin()
        made[f"{name}t"] = grid(4, 3, 4, by=(0.2, 0.5, 0.17), shift=shift).cos()
    for side, weight, bias in (
        ("s", 0.5 * grid(6, 5, by=(0.3, 0.8)).sin(), grid(6, by=(0.1,), shift=-0.2)),
        ("t", 1.5 * grid(6, 5, by=(0.4, 0.6)).cos(), grid(6, by=(-0.05,), shift=0.1)),
    ):
        for scales in ((1, 2), (1, 2, 4)):
            cells = functional.scale_cells(made[f"F{side}_sdd"], scales=scales)
            made[f"local_{side}_{''.join(map(str, scales))}"] = F.linear(cells, weight, bias)
    return made


GOLDENS: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "goldens" / "closed_form.json").read_text())
READINGS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "weighted sum": lambda x: (x.flatten() * (0.37 * torch.arange(x.numel()).double() + 0.1).cos()).sum(),
    "mse": lambda x: F.mse_loss(x, inputs()["Ft"]),
}


def predictor(x: Tensor, time: Tensor) -> Tensor:
    return 0.3 * x + 0.2 * (x + 0.001 * time).sin()


def named(names: Any, values: dict[str, Any]) -> Any:
    return values[names] if isinstance(names, str) else tuple(named(name, values) for name in names)


def flat(names: Any) -> Iterator[str]:
    if isinstance(names, str):
        yield names
    else:
        yield from itertools.chain.from_iterable(map(flat, names))


def covered() -> set[str]:
    """The functions that have a golden value here."""
    return {row["function"] for row in GOLDENS}


@pytest.mark.parametrize("row", GOLDENS, ids=[f"{row['function']}-{i}" for i, row in enumerate(GOLDENS)])
def test_golden(row: dict[str, Any]):
    """Value and gradients of the student's tensors; the teacher's are constants. fp64."""
    name, gradients = row["function"], row["grad_l2"]
    given: dict[str, Any] = {key: value.clone() for key, value in inputs().items()} | {"predictor": predictor}
    leaves = {key: given[key] for key in flat(row["arguments"]) if key != "predictor"}
    leaves = {key: x.requires_grad_() for key, x in leaves.items() if x.dtype.is_floating_point}
    value = getattr(functional, name)(*named(row["arguments"], given), **row["settings"])
    value = READINGS[row.get("reading")](value)
    value.backward()
    assert value.item() == pytest.approx(row["value"], rel=1e-6)
    for key, x in leaves.items():
        if key in gradients:
            assert x.grad is not None and x.grad.norm().item() == pytest.approx(gradients[key], rel=1e-5)
        else:
            assert x.grad is None or name == "diffuse", f"{key} is a constant"


LOGITS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "rld": lambda s, t, y: functional.rld(s, t, y, alpha=1.0, beta=8.0, temperature=1.0, alpha_temperature=1.0),
    "abkd": lambda s, t, y: functional.abkd(s, t, alpha=0.8, beta=0.3, temperature=1.0),
    "abkd 0 1": lambda s, t, y: functional.abkd(s, t, alpha=0.0, beta=1.0, temperature=1.0),
    "abkd 1 0": lambda s, t, y: functional.abkd(s, t, alpha=1.0, beta=0.0, temperature=1.0),
    "abkd 0 0": lambda s, t, y: functional.abkd(s, t, alpha=0.0, beta=0.0, temperature=1.0),
    "logit_standardized_abkd": lambda s, t, y: functional.logit_standardized_abkd(
        s, t, alpha=0.9, beta=0.3, temperature=4.0
    ),
    "luminet": lambda s, t, y: functional.luminet(s, t, alpha=33.0, temperature=4.0),
    "crld": lambda s, t, y: functional.crld(
        (s, s.flip(1)),
        (t, t.flip(1)),
        within_weight=2.0,
        cross_weight=0.5,
        within_threshold=0.1,
        cross_threshold=0.1,
        temperature=1.0,
    ),
    "sdd_kd": lambda s, t, y: functional.sdd_kd(cells(s), cells(t), y, temperature=1.0),
    "sdd_dkd": lambda s, t, y: functional.sdd_dkd(cells(s), cells(t), y, alpha=1.0, beta=8.0, temperature=1.0),
    "sdd_nkd": lambda s, t, y: functional.sdd_nkd(cells(s), cells(t), y, gamma=8.0, temperature=1.0),
    "sdd_nkd masked": lambda s, t, y: functional.sdd_nkd(cells(s), cells(t), y, gamma=8, temperature=1, masked=True),
    "wkd_l": lambda s, t, y: functional.wkd_l(s, t, y, inputs()["cost"], gamma=600.0, temperature=1.0),
    "skd": lambda s, t, y: functional.skd(s, t),
    "tf_kd_reg": lambda s, t, y: functional.tf_kd_reg(s, y),
    "hard_distillation": lambda s, t, y: functional.hard_distillation(s, t),
    "mutual_learning": lambda s, t, y: functional.mutual_learning(s, (t, t.flip(1))),
    "average_kd": lambda s, t, y: functional.average_kd(s, (t, t.flip(1)), temperature=1.0),
    "ca_mkd": lambda s, t, y: functional.ca_mkd(s, (t, t.flip(1)), y, temperature=1.0),
    "ebkd": lambda s, t, y: functional.ebkd(s, (t, t * 0), temperature=1.0),
    "quality_focal": lambda s, t, y: functional.quality_focal(s, t, torch.ones(len(s)), positives=3.0),
}
FEATURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wkd_f": lambda s, t: functional.wkd_f(s, t, ratio=4.0, grid=2),
    "ickd": functional.ickd,
    "appearance_consistency": lambda s, t: functional.appearance_consistency(((s,), (s.flip(1),)), (t, t.flip(1))),
    "srd_correlation": lambda s, t: functional.srd_correlation(s.mean((2, 3)), t.mean((2, 3))),
    "squared_distance": functional.squared_distance,
    "minilmv2": lambda s, t: functional.minilmv2(texts(s), texts(t), torch.ones(4, 4).bool(), heads=2),
}
OTHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "srd": lambda s, t: functional.srd(s.mean((2, 3)), t.mean((2, 3))),
    "vkd": lambda s, t: functional.vkd(s.mean((2, 3)), t.mean((2, 3))),
    "matched_statistics": lambda s, t: functional.matched_statistics(s, t).square().mean(),
    "scale_cells": lambda s, t: functional.scale_cells(s).square().mean(),
    "ddim": lambda s, t: functional.ddim(s, predictor).square().mean(),
    "diffuse": lambda s, t: functional.diffuse(s, t, inputs()["times"]).square().mean(),
    "ca_mkd_features": lambda s, t: functional.ca_mkd_features(
        (s, s.flip(1)), (t, t.flip(1)), (s.mean((2, 3)), s.mean((2, 3)).flip(1)), torch.tensor([0, 1, 2, 3])
    ),
}


def cells(z: Tensor) -> Tensor:
    """Logits of a whole image and two parts, (B, 3, K)."""
    return z[:, torch.tensor([range(6), range(5, -1, -1), range(-1, 5)])]


def texts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden = x[:, :4].flatten(2)
    return hidden, hidden.flip(2), hidden.roll(1, 2)


def test_every_function_is_tested_in_low_precision():
    assert covered() - {"kd"} == {name.split()[0] for name in (*LOGITS, *FEATURES, *OTHERS)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOGITS)
def test_extreme_logits(name: str, dtype: torch.dtype):
    """As large as fp16 holds: right and wrong, certain and undecided, teacher and student agreeing and not."""
    labels = torch.tensor([0, 1, 2, 3, 4])
    signs = torch.randint(0, 2, (2, 5, 6), generator=torch.Generator().manual_seed(0)) * 2 - 1
    peak = F.one_hot(labels, 6) * 2 - 1
    for scale in (1e4, 65504.0):
        for a, b in [(signs[0], signs[1]), (signs[0], signs[0]), (signs[0], signs[1] * 0), (peak, -peak)]:
            s, t = (a * scale).to(dtype).requires_grad_(), (b * scale).to(dtype)
            with torch.autocast("cpu", torch.bfloat16):
                value = LOGITS[name](s, t, labels)
            value.backward()
            assert value.isfinite() and value.dtype == torch.float32 and s.grad is not None
            if (name, dtype) != ("abkd 0 0", torch.float16):  # as large as the logits: fp16 cannot hold it
                assert s.grad.isfinite().all()


@pytest.mark.parametrize("name", [*FEATURES, *OTHERS])
def test_full_precision_under_autocast(name: str):
    s, t = torch.rand(2, 4, 6, 4, 4, generator=torch.Generator().manual_seed(2))
    loss = {**FEATURES, **OTHERS}[name]
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(s, t)
        reduced = loss(s.bfloat16(), t.bfloat16())
    assert torch.equal(inside, loss(s, t)) and inside.dtype == reduced.dtype == torch.float32


@pytest.mark.parametrize("name", [*FEATURES, "srd", "vkd", "matched_statistics"])
def test_degenerate_features(name: str):
    """Dead samples, two equal ones, a dead channel, student and teacher alike: finite gradients."""
    t = torch.rand(4, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    dead, twins, silent = t.clone(), t.clone(), t.clone()
    dead[1], twins[2], silent[:, 3] = 0, twins[0], 0
    sizes = {}
    for label, s in {"dead": dead, "none": t * 0, "twins": twins, "silent": silent, "equal": t, "o": t.flip(0)}.items():
        s = s.clone().requires_grad_()
        value = {**FEATURES, **OTHERS}[name](s, t)
        value.backward()
        assert value.isfinite() and s.grad is not None and s.grad.isfinite().all(), label
        sizes[label] = s.grad.norm().item()
    assert name not in FEATURES or sizes["equal"] < 1e-5 * sizes["o"]


@pytest.mark.parametrize(
    "name", ["abkd", "logit_standardized_abkd", "luminet", "sdd_kd", "sdd_dkd", "skd", "quality_focal", "rld"]
)
def test_no_gradient_where_student_and_teacher_agree(name: str):
    t = inputs()["zt"].clone()
    labels = t.argmax(1) if name == "rld" else inputs()["y"]  # where the teacher is wrong RLD's optimum lies elsewhere
    s = t.clone().requires_grad_()
    LOGITS[name](s, t, labels).backward()
    assert s.grad is not None and s.grad.abs().max() < 1e-12


def test_optima_elsewhere():
    t, y = inputs()["zt"], inputs()["y"]
    for name, size in (("rld", 0.39), ("wkd_l", None), ("crld", None), ("sdd_nkd", None)):
        s = t.clone().requires_grad_()
        if name == "rld":
            functional.rld(s, t, y, alpha=1.0, beta=8.0, temperature=4.0, alpha_temperature=4.0).backward()
        else:
            LOGITS[name](s, t, y).backward()
        assert s.grad is not None
        assert s.grad.norm().item() == pytest.approx(size, abs=5e-3) if size else s.grad.norm() > 1e-4


def test_abkd_is_a_family_with_kl_in_it():
    s, t = inputs()["zs"], inputs()["zt"]
    log_q, log_p = s.log_softmax(1), t.log_softmax(1)
    forward, reverse = (log_p.exp() * (log_p - log_q)).sum(1).mean(), (log_q.exp() * (log_q - log_p)).sum(1).mean()

    def loss(alpha: float, beta: float) -> Tensor:
        return functional.abkd(s, t, alpha=alpha, beta=beta, temperature=1.0)

    assert torch.allclose(loss(1.0, 0.0), forward) and torch.allclose(loss(0.0, 1.0), reverse)
    assert torch.allclose(loss(0.0, 0.0), (log_q - log_p).square().sum(1).mean() / 2)
    for at, near in (((1.0, 0.0), (1.0, 1e-6)), ((0.0, 1.0), (1e-6, 1.0)), ((0.5, -0.5), (0.5, -0.5 + 1e-6))):
        assert torch.allclose(loss(*at), loss(*near), rtol=1e-4), at
    p, q = log_p.exp(), log_q.exp()
    assert torch.allclose(loss(0.0, 0.5), 2 * (q**0.5 * (q**0.5 / p**0.5).log() - q**0.5 + p**0.5).sum(1).mean())
    assert torch.allclose(loss(0.5, 0.0), 2 * (p**0.5 * (p**0.5 / q**0.5).log() - p**0.5 + q**0.5).sum(1).mean())


def test_rld_leaves_out_a_row_whose_label_the_teacher_likes_least():
    s, t = inputs()["zs"].clone().requires_grad_(), inputs()["zt"]
    labels = inputs()["y"].clone()
    labels[2] = t[2].argmin()
    term = functional.rld(s, t, labels, alpha=0.0, beta=1.0, temperature=4.0, alpha_temperature=4.0)
    term.backward()
    others = torch.tensor([0, 1, 3])
    rest = functional.rld(s[others], t[others], labels[others], alpha=0, beta=1, temperature=4, alpha_temperature=4)
    assert s.grad is not None and not s.grad[2].any() and s.grad[0].any()
    assert torch.allclose(term, rest * 3 / 4)


def test_rld_by_definition():
    s, t, y = inputs()["zs"], inputs()["zt"], inputs()["y"]
    expected = 0.0
    for i, label in enumerate(y.tolist()):
        best, of_label = (t[i] / 2).softmax(0).max(), (s[i] / 2).softmax(0)[label]
        confidence = best * (best / of_label).log() + (1 - best) * ((1 - best) / (1 - of_label)).log()
        below_label = t[i] < t[i][label]
        p, q = (t[i][below_label] / 3).softmax(0), (s[i][below_label] / 3).softmax(0)
        expected += (0.5 * 4 * confidence + 7 * 9 * (p * (p / q).log()).sum()) / len(y)
    loss = functional.rld(s, t, y, alpha=0.5, beta=7.0, temperature=3.0, alpha_temperature=2.0)
    assert torch.allclose(loss, torch.as_tensor(expected))


def test_what_weighs_the_cells_of_sdd():
    """The weights' sums on the golden inputs, and that they come from the teacher alone."""
    y = inputs()["y"]
    for scales, total in (("12", 26), ("124", 112)):
        t = inputs()[f"local_t_{scales}"]
        right = t.argmax(2) == y[:, None]
        weights = torch.where(right == right[:, :1], 1.0, 2.0)
        assert weights.sum() == total
        assert (weights[:, 0] == 1).all()
        s = inputs()[f"local_s_{scales}"]
        rows = (t.softmax(2) * (t.log_softmax(2) - s.log_softmax(2))).sum(2)
        assert torch.allclose(functional.sdd_kd(s, t, y, temperature=1.0), (weights * rows).mean())


def test_the_released_sdd_nkd_masks_nothing():
    s, t, y = inputs()["local_s_12"][:, :1], inputs()["local_t_12"][:, :1], inputs()["y"]
    masked, released = (
        functional.sdd_nkd(s, t, y, gamma=2.0, temperature=3.0, masked=choice) for choice in (True, False)
    )
    assert torch.allclose(masked, functional.nkd(s[:, 0], t[:, 0], y, gamma=2.0, temperature=3.0))
    target = -(t[:, 0].softmax(1) * s[:, 0].log_softmax(1)).gather(1, y[:, None]).mean()
    everything = -((t[:, 0] / 3).softmax(1) * (s[:, 0] / 3).log_softmax(1)).sum(1).mean()
    assert torch.allclose(released, target + 2 * 9 * everything)


def test_the_cells_of_a_small_map_repeat_it():
    small = inputs()["Fs"][:, :, :2, :2]
    cells = functional.scale_cells(small, scales=(1, 2, 4))
    assert torch.allclose(cells[:, 1:5], small.flatten(2).transpose(1, 2))
    assert torch.allclose(
        cells[:, 5:], small.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(2).transpose(1, 2)
    )
    assert torch.allclose(cells[:, 0], small.mean((2, 3)))


def test_wkd_l_cuts_the_label_out():
    """The plan over the classes other than the label, each image with a cost matrix of its own."""
    s, t, y, cost = (inputs()[name] for name in ("zs", "zt", "y", "cost"))
    expected = 0.0
    for i, label in enumerate(y.tolist()):
        others = [k for k in range(6) if k != label]
        a, b, c = (s[i, others] / 2).softmax(0), (t[i, others] / 2).softmax(0), cost[others][:, others] + 1e-8
        kernel, u = torch.exp(-c / 0.1), torch.full((5,), 0.2).double()
        for _ in range(3):
            v = b / (kernel.t() @ u + 1e-8)
            u = a / (kernel @ v + 1e-8)
        expected += (u[:, None] * kernel * v * c).sum() / len(y)
    settings: dict[str, Any] = {"temperature": 2.0, "regularization": 0.1, "iterations": 3}
    term = functional.wkd_l(s, t, y, cost, gamma=5.0, **settings) - functional.wkd_l(s, t, y, cost, gamma=0, **settings)
    assert torch.allclose(term, 5 * torch.as_tensor(expected))


def test_wkd_f_needs_two_positions_a_cell():
    s, t = inputs()["Fs"], inputs()["Ft"]
    with pytest.raises(ValueError, match="single positions"):
        functional.wkd_f(s, t, ratio=1.0, grid=4)
    # Sides that the grid does not divide have cells that share positions, as adaptive pooling.
    assert torch.allclose(
        functional.wkd_f(s[..., :3, :3], t[..., :3, :3], ratio=1e9, grid=2) / 1e9,
        (F.adaptive_avg_pool2d(s[..., :3, :3], 2) - F.adaptive_avg_pool2d(t[..., :3, :3], 2)).square().sum() / 16,
    )


def test_minilmv2_leaves_padding_out():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    triples = [[inputs()[f"{name}{side}"].clone() for name in "QKV"] for side in "st"]
    value = functional.minilmv2(tuple(triples[0]), tuple(triples[1]), mask, heads=2)
    for triple in triples:
        for x in triple:
            x[~mask] = 7.0
    assert torch.equal(value, functional.minilmv2(tuple(triples[0]), tuple(triples[1]), mask, heads=2))
    texts = [functional.minilmv2(*([x[i : i + 1, :n] for x in tr] for tr in triples), mask[i : i + 1, :n], heads=2)
             for i, n in enumerate(mask.sum(1).tolist())]  # fmt: skip
    assert torch.allclose(value, torch.stack(texts).mean())


def test_srd_ends_where_student_and_teacher_agree():
    """The logarithm has no least value; the function stays finite, and pulls nowhere."""
    t = inputs()["ft"].float()
    s = t.clone().requires_grad_()
    value = functional.srd(s, t)
    value.backward()
    assert value.isfinite() and value < -80 and s.grad is not None and not s.grad.any()


def test_what_diffusion_adds_it_takes_away():
    """With the noise that was added as the prediction every step leads back to the latent."""
    latent, noise = inputs()["Fs"], inputs()["Ft"]
    noisy = functional.diffuse(latent, noise, torch.full((4,), 400))
    times: list[int] = []

    def oracle(x: Tensor, time: Tensor) -> Tensor:
        times.append(int(time))
        return noise

    assert torch.allclose(functional.ddim(noisy, oracle), latent)
    assert times == [400, 300, 200, 100, 0]
    noise_free = functional.diffuse(
        torch.ones(5, 1).double(), torch.zeros(5, 1).double(), torch.tensor([0, 100, 200, 300, 400])
    )
    expected = [0.9999, 0.895142, 0.656347, 0.394011, 0.193572]
    assert noise_free.square().flatten().tolist() == pytest.approx(expected, rel=2e-6)


def test_teachers_weights():
    """The surer teacher of two counts more, for CA-MKD where it is right, for EBKD in any case."""
    y = torch.tensor([0])
    sure, unsure = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    weight = 1 - torch.stack([F.cross_entropy(z, y) for z in (sure, unsure)]).softmax(0)
    s = torch.tensor([[0.0, 1.0, 0.0]])
    terms = torch.stack([functional.kd(s, z, temperature=2.0) for z in (sure, unsure)])
    assert weight[0] > weight[1]
    loss = functional.ca_mkd(s, (sure, unsure), y, temperature=2.0)
    assert torch.allclose(loss, (weight * terms).sum() / 2)
    swapped = functional.ca_mkd(s, (unsure, sure), y, temperature=2.0)
    assert torch.allclose(loss, swapped)
    entropy = torch.stack([-(z.softmax(1) * z.log_softmax(1)).sum() for z in (sure, unsure)])
    assert torch.allclose(
        functional.ebkd(s, (sure, unsure), temperature=2.0), ((1 - entropy / entropy.sum()) * terms).sum() / 2
    )


def test_tf_kd_by_definition():
    z, y = inputs()["zs"], inputs()["y"]
    assert math.isclose(functional.tf_kd_reg(z, y, correct=0.9, temperature=2.0).item(), expected_tf_kd(z, y))


def expected_tf_kd(z: Tensor, y: Tensor) -> float:
    total = 0.0
    for i, label in enumerate(y.tolist()):
        u = torch.full((6,), 0.1 / 5).double()
        u[label] = 0.9
        p = (u / 2).softmax(0)
        total += (p * (p.log() - z[i].log_softmax(0))).sum().item()
    return total / z.numel()
