"""Which stages are matched where two networks have different numbers of them, and what is built there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kd_methods
from benchmarks.networks import build_network
from kd_methods import functional
from kd_methods.contract import Batch, DataInfo, Progress
from kd_methods.functional.feature import same_size

PAIR = ("vgg8", "resnet8")  # four stages and three


@pytest.mark.parametrize("name", ["at", "nst", "vid"])
def test_stages_are_counted_from_the_first(name: str):
    """As RepDistiller's and the SimKD toolbox's ``zip`` pairs them, by which their tables were made."""
    torch.manual_seed(0)
    student, teacher = (build_network(network, 5, (3, 32, 32)).eval() for network in PAIR)
    method: Any = kd_methods.build(name, student, teacher, DataInfo(10, 5)).eval()
    x, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    outputs = [network(x, fields=("stages",)) for network in (student, teacher)]
    pairs = list(zip(outputs[0].stages, outputs[1].stages, strict=False))
    assert len(pairs) == 3 and pairs[0][0].shape[2] == 16, "the first stage of a VGG is halved"
    batch = Batch(x, labels, torch.arange(4), F.cross_entropy)
    (term,) = method.losses(*outputs, batch, Progress(1, 1)).distill.values()
    if name == "vid":
        expected = 0
        for pair, mean, theta in zip(pairs, method.means, method.thetas, strict=True):
            s, t = same_size(*pair)
            expected += functional.gaussian_nll(mean(s), t, theta, eps=1e-5)
    else:
        loss = functional.attention_transfer if name == "at" else functional.nst
        expected = method.settings.beta * loss(*zip(*pairs, strict=True))
    assert torch.allclose(term, torch.as_tensor(expected))


def test_the_translators_of_factor_transfer():
    """RepDistiller's has batch-norms, the authors' has not."""
    pair = [build_network(network, 5, (3, 32, 32)) for network in ("resnet8", "resnet14")]
    counts = {}
    for name in ("ft", "ft.paper"):
        method: Any = kd_methods.build(name, *pair, DataInfo(10, 5))
        counts[name] = sum(isinstance(layer, nn.BatchNorm2d) for layer in method.translator)
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in method.paraphraser.modules())
    assert counts == {"ft": 3, "ft.paper": 0}
