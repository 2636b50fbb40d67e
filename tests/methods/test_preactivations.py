"""What goes into the ReLUs at the ends of stages, on networks that are traced or read by hooks, and who needs it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

import kd_methods
from kd_methods.contract import Batch, DataInfo, Progress
from kd_methods.errors import UserError
from kd_methods.feature.ofd import norms_before
from kd_methods.views import NetworkView, view

SHAPE, INFO = (3, 16, 16), DataInfo(40, 5)


def layers(*widths: int, behind: tuple[type[nn.Module], ...] = (nn.ReLU,)) -> nn.Sequential:
    """Convolution, batch-norm and what is ``behind``, at half the size each time."""
    trunk: list[nn.Module] = []
    for a, b in zip((3, *widths), widths, strict=False):
        trunk += [nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), *(kind() for kind in behind)]
    return nn.Sequential(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 5))


class Opaque(nn.Module):
    """A block that cannot be traced, as its pass asks a value of its input; it ends in a ReLU or does not."""

    def __init__(self, width: int, ends: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.ends = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), ends
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.norm(self.conv(x)) if x.isfinite().all() else x
        return y.relu() if self.ends else y


def blocks(ends: bool) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    return nn.Sequential(
        stem, *(Opaque(8, ends) for _ in range(7)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


def seen_by_relus(network: NetworkView, x: Tensor) -> list[Tensor]:
    given: list[Tensor] = []
    relus = [m for m in network.modules() if isinstance(m, nn.ReLU | nn.ReLU6)]
    hooks = [m.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].clone())) for m in relus]
    network.module(x)
    for hook in hooks:
        hook.remove()
    return given


@pytest.mark.parametrize("behind", [(nn.ReLU,), (nn.ReLU6, nn.Identity), (nn.ReLU, nn.Dropout)])
def test_preactivations_of_layers_in_a_row_are_what_goes_into_their_relus(behind: tuple[type[nn.Module], ...]) -> None:
    network, x = view(layers(8, 12, 16, behind=behind).eval(), SHAPE), torch.randn(4, *SHAPE)
    outputs = network(x)
    assert set(network.layout.stages) <= network.layout.rectified
    assert all(map(torch.equal, outputs.preacts, seen_by_relus(network, x)[-len(outputs.preacts) :]))
    assert all((before < 0).any() for before in outputs.preacts)
    for name in ("ab", "ofd"):
        assert kd_methods.build(name, copy.deepcopy(network), network.requires_grad_(False), INFO)


def test_a_batch_norm_of_timm_is_cut_before_its_relu_and_stays_what_it_is() -> None:
    """By the batch, by what is tracked, and where a method wants the statistics of a batch in a frozen network."""
    torch.manual_seed(0)
    plain = timm.create_model("mobilenetv1_100", num_classes=5)
    network = view(copy.deepcopy(plain), (3, 32, 32))
    assert set(network.layout.stages) <= network.layout.rectified
    assert not set(network.layout.preacts) & network.layout.rectified
    x = torch.randn(4, 3, 32, 32)
    for mode in (True, False):
        torch.manual_seed(1)
        logits = plain.train(mode)(x)
        torch.manual_seed(1)
        assert torch.equal(network.train(mode)(x).logits, logits)
        assert all(map(torch.equal, network.module.buffers(), plain.buffers()))
    with network.batch_statistics():
        by_batch = network(x)
    assert all(map(torch.equal, network.module.buffers(), plain.buffers()))
    usual = network(x)
    for before, other in zip(by_batch.preacts, usual.preacts, strict=True):
        assert not torch.allclose(before, other, atol=1e-3) and before.mean((0, 2, 3)).abs().max() < 1e-4
    norms = norms_before(network, x[:1])
    assert [norm is not None and norm.num_features for norm in norms] == [y.shape[1] for y in usual.preacts]


@pytest.mark.parametrize("ends", [True, False])
def test_what_cannot_be_cut_before_its_relu_is_told_from_what_has_none(ends: bool) -> None:
    """Also where a block adds nothing to its input yet, which came out of a ReLU."""
    torch.manual_seed(0)
    module = blocks(ends)
    state = copy.deepcopy(module.state_dict())
    traced = view(module, SHAPE)
    assert all(map(torch.equal, module.state_dict().values(), state.values()))
    named = view(blocks(ends), SHAPE, units=["3", "7"])
    for network in (traced, named):
        assert network.layout.preacts == network.layout.stages
        assert bool(set(network.layout.stages) & network.layout.rectified) == ends
        for name in ("ab", "ofd"):
            pair = copy.deepcopy(network), copy.deepcopy(network).requires_grad_(False)
            if not ends:
                assert kd_methods.build(name, *pair, INFO)
                continue
            with pytest.raises(UserError, match=f"'{name}' compares what goes into ReLUs, .* unit '.*' only") as caught:
                kd_methods.build(name, *pair, INFO)
            assert "\n" not in str(caught.value)
    assert kd_methods.build("reviewkd", traced, copy.deepcopy(traced).requires_grad_(False), INFO)


def test_connectors_end_in_a_relu_where_the_teachers_stages_do() -> None:
    student = view(resnet18(num_classes=5), (3, 64, 64))
    teacher = view(timm.create_model("regnetx_002", num_classes=5), (3, 64, 64)).requires_grad_(False)
    method: Any = kd_methods.build("block_kd", student, teacher, INFO)
    assert all(connector.rectify for connector in method.connectors.values())


def test_a_student_that_is_on_where_its_teacher_is_has_nothing_to_learn_of_ab() -> None:
    """Post-ReLU maps would leave the margin of every unit that is off."""
    torch.manual_seed(0)
    teacher = view(layers(8, 12, 16), SHAPE).requires_grad_(False).eval()
    student = view(layers(8, 12, 16), SHAPE).eval()
    student.module.load_state_dict(teacher.module.state_dict())
    method: Any = kd_methods.build("ab", student, teacher, INFO)
    x = torch.randn(4, *SHAPE)
    batch = Batch(x, torch.zeros(4, dtype=torch.long), torch.arange(4), F.cross_entropy)
    far = student(x)
    of_teacher = teacher(x)
    scaled = far.each(lambda value: 1e6 * value)
    (phase,) = method.phases()
    assert phase.losses(scaled, of_teacher, batch, Progress(1, 240)).total() < 1e-3
