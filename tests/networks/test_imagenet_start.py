"""Networks that begin with ImageNet weights of torchvision or timm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision

from benchmarks import networks
from benchmarks.networks import build_network
from kd_methods.errors import UserError

BEGUN = {
    "ResNet34": ("resnet34", {"conv1.weight", "linear.bias", "linear.weight"}),
    "vgg19_bn": ("vgg19_bn", {"classifier.0.weight", "classifier.6.bias", "classifier.6.weight"}),
    "vit_b_p8": ("vit_b_16", {"vit.head.bias", "vit.head.weight"}),
}
"""torchvision's network, and what does not begin with its weights: stems of another size, classifiers."""


@pytest.mark.parametrize("name", BEGUN)
def test_networks_begin_with_the_imagenet_weights_that_fit(name: str):
    """What both networks have in common computes the same."""
    torch.manual_seed(3)
    theirs: Any = torchvision.models.get_model(BEGUN[name][0], weights=None).eval()
    ours = build_network(name, 10, (3, 64, 64)).eval()
    before = {key: value.clone() for key, value in ours.module.state_dict().items()}
    left = networks.imagenet_start.begin(ours.module, theirs.state_dict())
    after = ours.module.state_dict()
    assert set(left) == BEGUN[name][1] and all(torch.equal(before[key], after[key]) for key in left)
    with torch.no_grad():
        if name == "ResNet34":
            x = torch.randn(1, 64, 8, 8)
            wanted = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        elif name == "vgg19_bn":
            x = torch.randn(1, 64, 16, 16)
            wanted = theirs.features[6:-1](x)
        else:
            x = torch.randn(1, 65, 768)
            wanted = theirs.encoder.ln(theirs.encoder.layers(x))
        start = {"ResNet34": "stem", "vgg19_bn": "block0", "vit_b_p8": "tokens"}[name]
        assert torch.allclose(ours.resume(start, x, until=ours.layout.last_map), wanted, atol=1e-4)


def test_patches_and_positions_are_fitted_to_another_size():
    """The class token's position comes first and stays; the grid keeps its directions; kernels are averaged."""
    ours = build_network("vit_b", 10).module
    rows = torch.arange(14.0).repeat_interleave(14)
    columns = torch.arange(14.0).repeat(14)
    positions = torch.zeros(1, 197, 768)
    positions[0, 0] = 100.0
    positions[0, 1:, 0], positions[0, 1:, 1] = rows, columns
    kernels = torch.randn(768, 3, 16, 16)
    networks.imagenet_start.begin(ours, {"encoder.pos_embedding": positions, "conv_proj.weight": kernels})
    weights = ours.state_dict()
    assert torch.equal(weights["vit.pos_embed"][0, 0], positions[0, 0])
    grid = weights["vit.pos_embed"][0, 1:].unflatten(0, (8, 8))
    assert torch.allclose(grid[:, 0, 0], grid[:, 7, 0]) and torch.allclose(grid[0, :, 1], grid[7, :, 1])
    assert (grid[1:, 0, 0] > grid[:-1, 0, 0]).all() and (grid[0, 1:, 1] > grid[0, :-1, 1]).all()
    wanted = kernels.unflatten(3, (4, 4)).unflatten(2, (4, 4)).mean((3, 5))
    assert torch.allclose(weights["vit.patch_embed.proj.weight"], wanted, atol=1e-6)


def test_a_network_without_known_imagenet_weights_is_one_line():
    assert networks.imagenet_start.source("timm:test_vit@224") == "timm:test_vit"
    with pytest.raises(UserError, match="no ImageNet weights are known that network 'vgg8' could begin with"):
        networks.imagenet_start.source("vgg8")
