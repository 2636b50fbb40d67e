"""The library alone, on networks that it has never seen."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmarks.networks import build_network
from kd_methods.errors import UserError
from kd_methods.views import NetworkView, view
from kd_methods.views.tracing import prefix_tokens

ALONE = """
import sys
sys.modules["benchmarks"] = sys.modules["timm"] = None  # importing either fails
import torch, kd_methods
from torchvision.models import ShuffleNetV2

images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
for name in ("kd", "block_kd", "simkd"):
    student, teacher = (ShuffleNetV2([1, 1, 1], [24, *widths], 10) for widths in ([24, 32, 48, 32], [32, 48, 64, 40]))
    kd = kd_methods.Distiller(name, student, teacher, num_classes=10, input_shape=(3, 32, 32))
    kd(images, labels).total().backward()
    assert kd.deployed()(images).shape == (4, 10), name
"""


def test_methods_work_on_any_networks_without_the_suite_and_without_timm() -> None:
    result = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_view_is_the_module_itself() -> None:
    module = resnet18(num_classes=10).eval()
    network, x = view(module, (3, 32, 32)), torch.randn(2, 3, 32, 32)
    assert isinstance(network, NetworkView) and network.module is module and network.plain() is module
    outputs = network(x, at=network.units)
    assert torch.equal(outputs.logits, module(x))
    assert [stage.shape[1] for stage in outputs.stages] == [64, 128, 256, 512]
    for unit in network.units:
        assert torch.allclose(network.resume(unit, outputs[unit]), outputs.logits, atol=1e-5), unit


def test_a_network_of_layers_alone_is_cut_behind_its_activations() -> None:
    trunk = [layer for c in (3, 8) for layer in (nn.Conv2d(c, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())]
    module = nn.Sequential(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    network, x = view(module, (3, 16, 16)), torch.randn(2, 3, 16, 16)
    outputs = network(x, at=network.units)
    assert torch.equal(outputs.logits, module(x)) and [stage.shape[1:] for stage in outputs.stages] == [
        (8, 8, 8), (8, 4, 4)
    ]  # fmt: skip
    for unit in network.units:
        assert torch.allclose(network.resume(unit, outputs[unit]), outputs.logits, atol=1e-6), unit
    with pytest.raises(UserError, match="blocks of network 'Sequential' cannot be found"):
        view(nn.Sequential(nn.Flatten(), nn.Linear(768, 20), nn.ReLU(), nn.Linear(20, 3)), (3, 16, 16))


class Branching(nn.Module):
    """Does what its input says, which cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))
        return self.classifier(-pooled if pooled.sum() > 0 else pooled)


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (Branching(), (3, 8, 8), "cannot be cut into units"),
        (resnet18(num_classes=10), (4, 32, 32), "does not run on"),
    ],
    ids=["branching", "channels"],
)
def test_what_cannot_be_viewed_is_one_line(module: nn.Module, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        view(module, shape)
    assert "\n" not in str(error.value) and type(module).__name__ in str(error.value)


def test_what_cannot_be_traced_is_read_where_it_is_told_to() -> None:
    """Features and logits are the module's own; what would have to run from them says that it cannot."""
    module = Hidden().eval()
    with pytest.raises(UserError, match="cannot be cut into units"):
        view(module, (3, 32, 32))
    network = view(module, (3, 32, 32), units=["body.layer1", "body.layer2.0", "body.layer4"])
    x = torch.randn(2, 3, 32, 32)
    outputs = network(x)
    assert network.plain() is module
    assert [stage.shape[1] for stage in outputs.stages] == [64, 128, 512] and outputs.last_map is outputs.stages[-1]
    assert torch.allclose(outputs.logits, module(x), atol=1e-5)
    assert torch.allclose(outputs.pooled, outputs.last_map.mean((2, 3)), atol=1e-5)
    assert network.shapes("stages")[1] == (128, 4, 4)
    assert torch.allclose(network.fold_batch_norms()(x).stages[0], outputs.stages[0], atol=1e-4)
    with pytest.raises(UserError, match=r"'body\.layer4' is only read") as error:
        network.resume("body.layer4", outputs.last_map)
    assert "\n" not in str(error.value)


class Hidden(nn.Module):
    """A ResNet-18 that looks at its input, which cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.body = resnet18(num_classes=10)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(-x if x.isnan().any() else x)


@pytest.mark.parametrize(
    ("units", "words"),
    [
        (["layer5"], "did you mean layer4"),
        (["layer1", "fc"], "'fc' of network 'ResNet' gives no map"),
        (["layer1", "layer4.1.ignored"], "'layer4.1.ignored' of network 'ResNet' gives no map"),
    ],
)
def test_units_that_do_not_serve_are_one_line(units: list[str], words: str) -> None:
    module = resnet18(num_classes=10)
    module.layer4[1].ignored = nn.Conv2d(3, 3, 1)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        view(module, (3, 32, 32), units=units)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("size", "prefix"), [((256, 256), 1), ((128, 512), None), ((512, 128), None)])
def test_tokens_of_other_images_than_squares_are_no_map(size: tuple[int, int], prefix: int | None) -> None:
    """A network that divides 128 x 512 pixels into patches has 8 x 32 of them: as many as 16 x 16."""
    module = nn.Linear(1, 1)
    module.num_prefix_tokens = 1  # type: ignore[assignment]
    assert prefix_tokens(module, (257, 64), torch.zeros(1, 3, *size)) == prefix


def test_an_architecture_has_its_own_chain() -> None:
    module = build_network("resnet8", 10, (3, 16, 16)).module
    assert view(module, (3, 16, 16)).layout == build_network("resnet8", 10, (3, 16, 16)).layout
