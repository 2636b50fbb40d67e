"""Networks as users write them: layers used twice, tied or frozen, what goes on that is no tensor, wrappers around."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import kd_methods
from benchmarks.networks import build_network
from kd_methods import Distiller
from kd_methods.contract import DataInfo
from kd_methods.errors import UserError
from kd_methods.views import fold_batch_norms, view
from kd_methods.views.tracing import prefix_tokens

SHAPE = (3, 16, 16)
INFO = DataInfo(40, 10, torch.arange(40) % 10)


def conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


class Plain(nn.Module):
    """One ReLU, used behind every convolution, or one for each."""

    def __init__(self, relus: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 8), conv(8, 16), conv(16, 32)
        self.relu, self.relu2, self.relu3 = (nn.ReLU() for _ in range(3))
        self.fc, self.several = nn.Linear(32, 10), relus > 1

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.conv1(x)), 2)
        x = F.max_pool2d((self.relu2 if self.several else self.relu)(self.conv2(x)), 2)
        x = (self.relu3 if self.several else self.relu)(self.conv3(x))
        return self.fc(x.mean((2, 3)))


def test_a_layer_that_runs_in_several_places_ends_several_stages() -> None:
    torch.manual_seed(0)
    network, separate = Plain(), Plain(3)
    separate.load_state_dict(network.state_dict())
    cut = view(network, SHAPE)
    assert len(set(cut.layout.stages)) == 3 and [shape[0] for shape in cut.shapes("stages")] == [8, 16, 32]
    x = torch.randn(2, *SHAPE)
    outputs = cut(x)
    for ours, theirs in zip(outputs.stages, view(separate, SHAPE)(x).stages, strict=True):
        assert torch.equal(ours, theirs)
    for stage, unit in zip(outputs.stages, cut.layout.stages, strict=True):
        assert torch.allclose(cut.resume(unit, stage), network(x), atol=1e-6)


@pytest.mark.parametrize("name", ["torchvision:swin_t", "torchvision:swin_v2_t"])
def test_maps_of_torchvision_s_swin_have_channels_first(name: str) -> None:
    cut = build_network(name, 7, (3, 64, 64))
    assert cut.shapes("stages") == ((96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2))
    assert cut.shapes("last_map") == ((768, 2, 2),)
    x = torch.randn(2, 3, 64, 64)
    outputs = cut.eval()(x)
    assert torch.allclose(outputs.logits, cut.module(x), atol=1e-5)
    assert torch.allclose(cut.resume(cut.layout.stages[1], outputs.stages[1]), outputs.logits, atol=1e-5)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.bn = conv(width, width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn(self.conv(x)))


class Tied(nn.Module):
    def __init__(self, width: int = 8, tied: bool = True) -> None:
        super().__init__()
        self.stem, self.blocks = conv(3, width), nn.Sequential(*(Residual(width) for _ in range(3)))
        self.fc = nn.Linear(width, 10)
        for i in (1, 2) if tied else ():
            self.blocks[i].conv.weight = self.blocks[0].conv.weight  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def test_simkd_keeps_layers_whose_weights_are_another_one_s() -> None:
    torch.manual_seed(0)
    cut, teacher = view(Tied(), SHAPE).eval(), view(Tied(16, tied=False), SHAPE)
    adapted = kd_methods.build("simkd", cut, teacher, INFO).adapt(cut).eval()
    x, last = torch.randn(2, *SHAPE), cut.layout.last_map
    assert torch.equal(adapted(x, at=(last,), fields=())[last], cut(x, at=(last,), fields=())[last])


def test_what_is_deployed_is_saved_within_any_module() -> None:
    torch.manual_seed(0)
    kd = Distiller("norm", view(Tied(), SHAPE), view(Tied(16), SHAPE), num_classes=10)
    deployed = kd.deployed().eval()
    keys = set(deployed.state_dict())
    around = nn.Sequential(nn.Identity(), deployed)
    assert {key.removeprefix("1.") for key in around.state_dict()} == keys and len(keys) > 10
    assert {key.removeprefix("module.") for key in AveragedModel(deployed).state_dict()} - {"n_averaged"} == keys
    changed = {key: value + 1 for key, value in around.state_dict().items()}
    around.load_state_dict(changed)
    assert all(torch.equal(value, changed[f"1.{key}"]) for key, value in deployed.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        deployed.load_state_dict({})


class Within(nn.Module):
    """A first block inside of a context."""

    def __init__(self, context: Any) -> None:
        super().__init__()
        self.context, self.first, self.rest = context, Residual(3), Tied()

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            x = self.first(x)
        return self.rest(x.float())


@pytest.mark.parametrize("context", [torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_network_that_does_more_than_its_units_is_refused(context: Any) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match="does more in its forward pass than its units"):
        view(Within(context), SHAPE)
    named = view(Within(context), SHAPE, units=["rest.blocks.0", "rest.blocks.2"])
    assert [shape[0] for shape in named.shapes("stages")] == [8, 8]


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.drop = nn.Sequential(Residual(3), Residual(3)), nn.Dropout(0.5, inplace=True)
        self.layer2, self.fc = nn.Sequential(Residual(3), Residual(3)), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.drop(self.layer1(x))).mean((2, 3)))


def test_what_is_kept_is_not_written_into_afterwards() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True), conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    ).eval()  # fmt: skip
    x = torch.randn(4, *SHAPE)
    stages = view(network, SHAPE, units=["1", "4"]).eval()(x).stages
    assert torch.equal(stages[0], network[1](network[0](x))) and stages[0].min() < 0
    dropping = Dropping()
    cut = view(dropping, SHAPE)
    dropping.train()
    before = cut(x, at=("layer1.1",), fields=())["layer1.1"]
    assert torch.allclose(before, dropping.layer1(x), atol=1e-5), "the dropout behind it writes in training alone"


@pytest.mark.parametrize("norm", [torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.spectral_norm, None])
def test_what_cannot_be_folded_is_left(norm: Any) -> None:
    torch.manual_seed(0)
    layer = norm(conv(3, 8)) if norm else conv(3, 8)
    network = nn.Sequential(layer, nn.BatchNorm2d(8, track_running_stats=norm is not None), nn.ReLU()).eval()
    x = torch.randn(4, *SHAPE)
    assert torch.allclose(fold_batch_norms(network)(x), network(x), atol=1e-6)


class Odd(nn.Module):
    """Fails while it is traced, has its classifier first, or gives a dict."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.fc = how, nn.Linear(3, 10)
        self.blocks = nn.Sequential(Residual(3), Residual(3))

    def forward(self, x: Tensor) -> Any:
        if self.how == "assert":
            assert isinstance(x, Tensor)
        logits = self.fc(self.blocks(x).mean((2, 3)))
        return {"logits": logits} if self.how == "dict" else logits


def test_what_cannot_be_cut_says_so_in_one_line() -> None:
    with pytest.raises(UserError, match="cannot be cut into units"):
        view(Odd("assert"), SHAPE)
    with pytest.raises(UserError, match="gives dict, and no logits"):
        view(Odd("dict"), SHAPE, units=["blocks.0"])
    for units in ((), ("blocks.0", "blocks.1")):
        cut = view(Odd("classifier first"), SHAPE, units=units)
        assert cut.layout.stages[-1] == "blocks.1" and cut(torch.randn(2, *SHAPE)).logits.shape == (2, 10)
    with pytest.raises(UserError, match="selecsls42b"):
        build_network("timm:selecsls42b", 7, (3, 64, 64))


# --- networks of timm whose features lie otherwise ------------------------------------------------------------------


def test_maps_with_channels_last_are_turned_by_what_timm_says_of_them():
    """PVT gives (B, H, W, C) and does not declare it."""
    network = timm.create_model("pvt_v2_b0", num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    stages = view(network, (3, 64, 64))(x, fields=("stages",)).stages
    theirs = network.forward_intermediates(x, output_fmt="NCHW", intermediates_only=True)
    assert [stage.shape[1] for stage in stages] == [32, 64, 160, 256]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(stages, theirs, strict=True))
    with pytest.raises(UserError, match="maps of 32x32x32, whose channels cannot be told from rows"):
        view(network, (3, 128, 128))


def test_every_map_of_a_network_with_channels_last_is_turned():
    network = view(timm.create_model("tiny_vit_5m_224", num_classes=5), (3, 64, 64))
    shapes = [network.shape(unit) for unit in network.layout.layers if len(network.shape(unit)) == 3]
    assert {shape[0] for shape in shapes} == {64, 128, 160, 320} and all(shape[1] == shape[2] for shape in shapes)


class _Hiera(nn.Module):
    """Patches in another order than by rows, as timm's Hiera has them."""

    reroll = None


def test_patches_in_another_order_are_no_map():
    images = torch.zeros(2, 3, 64, 64)
    assert prefix_tokens(nn.Module(), (16, 8), images) == 0 and prefix_tokens(_Hiera(), (16, 8), images) is None


class _Odd(nn.Module):
    """What one pass does not show: layers that are drawn, and a constant that is made on the way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.rows = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(3)))
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "constant":
            x = x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
        for block in self.rows:
            if self.training and (self.kind == "drawn" and random.random() < 0.0):
                continue
            if self.training and (self.kind == "drawn by numpy" and np.random.rand() < 0.0):
                continue
            x = block(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("drawn", "draws numbers outside of its layers"),
        ("drawn by numpy", "draws numbers outside of its layers"),
        ("constant", "makes a constant"),
    ],
)
def test_what_one_pass_does_not_show_is_refused(kind: str, words: str):
    with pytest.raises(UserError, match=words):
        view(_Odd(kind), (3, 16, 16))


def test_student_and_teacher_share_nothing():
    network = build_network("resnet8", 5, (3, 16, 16)).module
    with pytest.raises(UserError, match="share parameters"):
        kd_methods.Distiller("kd", network, network, num_classes=5, input_shape=(3, 16, 16))


def test_a_distiller_has_the_mode_of_its_student_and_takes_labels_as_data_sets_have_them():
    student, teacher = (build_network(name, 5, (3, 16, 16)).module for name in ("resnet8", "resnet14"))
    kd = kd_methods.Distiller(
        "crd",
        student.eval(),
        teacher,
        num_classes=5,
        input_shape=(3, 16, 16),
        labels=[i % 5 for i in range(60)],
        negatives=8,
    )
    assert not kd.training and not kd.method.training and kd.train().student.training
    norms = [module.eval() for module in student.train().modules() if isinstance(module, nn.BatchNorm2d)]
    kd_methods.Distiller("kd", student, teacher, num_classes=5, input_shape=(3, 16, 16))
    assert norms and not any(norm.training for norm in norms), "what is frozen stays so"
