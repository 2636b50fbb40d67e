"""The library alone, on networks that it has never seen."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from kd_methods.errors import UserError
from kd_methods.views import NetworkView, view

ALONE = """
import sys
sys.modules["benchmarks"] = sys.modules["timm"] = None  # importing either fails
import torch, kd_methods
from torchvision.models import resnet18, resnet34
from kd_methods.contract import Batch, DataInfo, Progress
from kd_methods.views import view

teacher = view(resnet34(num_classes=10), (3, 32, 32)).requires_grad_(False).eval()
images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
batch = Batch(images, labels, labels, torch.nn.functional.cross_entropy)
for name in ("kd", "fitnet", "sp", "block_kd", "simkd", "norm"):
    student = view(resnet18(num_classes=10), (3, 32, 32))
    method = kd_methods.build(name, student, teacher, DataInfo(num_samples=4, num_classes=10))
    student = method.adapt(student)
    outputs = student(images, at=method.needs.student_units, fields=method.needs.student)
    with torch.no_grad():
        fields = [field for field in method.needs.teacher if field != "logits"]
        targets = teacher.fold_batch_norms()(images, at=method.needs.teacher_units, fields=fields)
    method.losses(outputs, targets, batch, Progress(1, 1)).total().backward()
    assert method.deployed(student)(images).shape == (4, 10), name
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
    trunk = [part for c in (3, 8) for part in (nn.Conv2d(c, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())]
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
    [(Branching(), (3, 8, 8), "cannot be cut into units"), (resnet18(num_classes=10), (4, 32, 32), "does not run on")],
    ids=["branching", "channels"],
)
def test_what_cannot_be_viewed_is_one_line(module: nn.Module, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        view(module, shape)
    assert "\n" not in str(error.value) and type(module).__name__ in str(error.value)
