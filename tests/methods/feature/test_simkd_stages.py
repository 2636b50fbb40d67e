"""SimKD as feature-only KD's paper compares with it: four layers, and the teacher's end behind the projected map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import kd_methods
from benchmarks.analysis import linear_probe
from benchmarks.networks import build_network
from kd_methods.contract import Batch, DataInfo, Progress
from kd_methods.errors import UserError
from kd_methods.functional.feature import same_size
from kd_methods.views import view

INFO = DataInfo(100, 10, torch.arange(100) % 10)


def _simkd_stages(pair: tuple[str, str], **settings: Any) -> tuple[Any, Any, Any, Any]:
    """Teacher, method, the student as it becomes, and a batch of four."""
    torch.manual_seed(0)
    teacher = build_network(pair[0], 10).requires_grad_(False).eval()
    student = build_network(pair[1], 10)
    method = kd_methods.build("simkd.stages", student, teacher, INFO, **settings).train()
    x, labels = torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    return (
        teacher,
        method,
        method.adapt(student).train(),
        Batch(x, labels, torch.arange(4), nn.functional.cross_entropy),
    )


def _seen(method: Any, adapted: Any, teacher: Any, batch: Batch) -> tuple[Any, Any]:
    ours = adapted(batch.inputs, at=method.needs.student_units, fields=())
    return ours, teacher(batch.inputs, at=method.needs.teacher_units, fields=())


def test_the_papers_simkd_matches_four_layers_and_predicts_with_the_teachers_classifier():
    teacher, method, adapted, batch = _simkd_stages(("ResNet34", "ResNet9"))
    ours, theirs = _seen(method, adapted, teacher, batch)
    losses = method.losses(ours, theirs, batch, Progress(1, 50))

    stages = adapted(batch.inputs).stages
    projected = [nn.Sequential(*p)(f) for p, f in zip([*method.earlier, method.projector], stages, strict=True)]
    terms = [(p - t).square().mean() for p, t in zip(projected, teacher(batch.inputs).stages, strict=True)]
    assert len(terms) == 4 and losses.distill["feature"].item() == pytest.approx(sum(terms).item() / 4, rel=1e-5)
    logits = teacher.module.linear(projected[-1].mean((2, 3)))
    assert torch.allclose(ours.logits, logits, atol=1e-5)
    p_t, log_s = (theirs.logits / 4).softmax(1), (logits / 4).log_softmax(1)
    kd = 16 * (p_t * (p_t.log() - log_s)).sum(1).mean()  # the public code's weight at T 4
    assert losses.distill["kd"].item() == pytest.approx(kd.item(), rel=1e-4)
    losses.total().backward()
    assert all(p.grad is not None for p in method.parameters())
    assert all((p.grad is None) == name.startswith("module.tail") for name, p in adapted.named_parameters())
    adapted.eval(), method.eval()
    assert torch.allclose(method.deployed(adapted)(batch.inputs), adapted(batch.inputs).logits)


TAILS = {  # what runs behind the projected map: the networks of the paper, and the ReLU or block that its code repeats
    ("ResNet34", "MobileNetV2x1"): (["pool", "flatten", "linear"], ["layer4.2.sum", "layer4.2"]),
    ("vgg19_bn", "vgg11_bn"): (
        ["pool4", "pool", "flatten", "fc1", "drop1", "fc2", "drop2", "classifier"],
        ["block4"],
    ),
    ("vit_ett", "vit_ett"): (["blocks.8", "norm", "pool", "head"], ["blocks.7"]),
}


@pytest.mark.parametrize("pair", TAILS)
@pytest.mark.parametrize("legacy", [(), ("block",)])
def test_simkd_ends_with_all_that_follows_the_teachers_last_matched_layer(
    pair: tuple[str, str], legacy: tuple[str, ...]
):
    teacher, method, adapted, batch = _simkd_stages(pair, legacy=legacy)
    rest, again = TAILS[pair]
    of_tail = [unit.removeprefix("tail.") for unit in adapted.units if unit.startswith("tail.")]
    assert of_tail == ([*again, *rest] if legacy else rest)
    ours, theirs = _seen(method, adapted, teacher, batch)
    end = ours["simkd_projector"]
    assert [s.shape for s in same_size(end, theirs[method.teacher_unit])] == [end.shape] * 2
    before = teacher.units[teacher.units.index(again[0]) - 1] if legacy else method.teacher_unit
    # The end is in evaluation mode while the student trains: VGG's dropout would show.
    assert torch.allclose(ours.logits, teacher.resume(before, end), atol=1e-5)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    method.losses(ours, theirs, batch, Progress(1, 50)).total().backward()
    assert trained == {name for name, p in adapted.named_parameters() if p.grad is not None}, "nothing without use"


def test_simkd_in_its_legacy_form_tests_with_the_statistics_of_the_batch():
    for legacy in ((), ("statistics",)):
        _, _, adapted, batch = _simkd_stages(("resnet14", "resnet8"), legacy=legacy)
        x = batch.inputs
        alone, together = adapted.eval()(x[:2]).logits, adapted(x).logits[:2]
        assert torch.allclose(alone, together, atol=1e-5) == (not legacy)
    with pytest.raises(UserError, match="last block gives another shape than it takes"):
        _simkd_stages(("resnet8", "resnet8"), legacy=("block",))
    teacher, method, *_ = _simkd_stages(("torchvision:vgg11_bn", "resnet8"), legacy=("block",))
    assert method.entry() == teacher.layout.preacts[-1] != teacher.layout.stages[-1], "a ReLU, as in the suite's VGGs"
    trunk = [layer for c in (3, 8, 8) for layer in (nn.Conv2d(c, 8, 3, padding=1), nn.LeakyReLU())]
    leaky = view(nn.Sequential(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)), (3, 32, 32))
    student = build_network("resnet8", 10)
    with pytest.raises(UserError, match="nothing would run twice"):
        kd_methods.build("simkd.stages", student, leaky, INFO, legacy=("block",)).adapt(student)


def test_the_probe_sees_the_projected_map_and_none_of_the_teachers_end():
    _, _, adapted, _ = _simkd_stages(("resnet14", "resnet8"))
    assert linear_probe.probed(adapted, build_network("resnet8", 10)) == ["layer3.0", "simkd_projector"]
