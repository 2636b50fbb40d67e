"""Networks of timm and torchvision, and those of table 3: chains of their units, sizes, what cannot be had."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
from torch import nn

import kd_methods
from benchmarks import networks
from benchmarks.config.protocol import load_protocol
from benchmarks.cost.operations import Operations
from benchmarks.networks import NetworkView, build_network
from benchmarks.tasks import get_task
from kd_methods.contract import DataInfo
from kd_methods.contract.patches import as_map, as_tokens
from kd_methods.errors import UserError

FAMILIES = {
    "timm:test_resnet": 32,
    "timm:test_vit": 32,
    "timm:swin_tiny_patch4_window7_224": 64,
    "timm:mixer_s32_224": 64,
    "timm:test_convnext": 64,
    "timm:test_efficientnet": 32,
    "timm:regnetx_002": 64,
    "torchvision:resnet18": 64,
    "torchvision:mobilenet_v2": 32,
    "MobileNetV1": 64,
    "timm:mobilenetv1_100": 64,
    "timm:repvgg_a0": 64,
    "timm:vgg11_bn": 64,
    "torchvision:vgg11_bn": 64,
}

USUALLY = [pytest.param(name, marks=pytest.mark.slow) if name == "timm:vgg11_bn" else name for name in FAMILIES]
"""A head of 100 million parameters takes its time; its first pass is looked at nevertheless."""

WITHOUT_PREACTS = {"timm:vgg11_bn": {"features.28"}}
"""Stages behind a ReLU, what goes into which cannot be had: a pooling is between."""


@functools.cache
def network(name: str) -> NetworkView:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        view = build_network(name, 7, (3, FAMILIES[name], FAMILIES[name]))
    return view.requires_grad_(False).eval()


def pixels(name: str, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, FAMILIES[name], FAMILIES[name], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pass_that_is_resumed_behind_any_unit_is_the_networks_own(name: str) -> None:
    view, x = copy.deepcopy(network(name)), pixels(name)
    for norm in view.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)  # with zeros, as some residual branches begin, no sum would have a sign
    outputs = view(x, at=view.units)
    assert torch.equal(outputs.logits, view.module(x))
    for unit in view.units:
        assert torch.equal(view.resume(unit, outputs[unit]), outputs.logits), unit
    assert len(view.layout.stages) == 4 and len(view.layout.blocks) == 4
    assert [unit for unit in view.layout.rectified if (outputs[unit] < 0).any()] == []
    ends = {*view.layout.stages, *view.layout.blocks, view.layout.last_map, *view.layout.preacts}
    assert {unit for unit in ends if not (outputs[unit] < 0).any()} == ends & view.layout.rectified
    assert ends & view.layout.rectified & {*view.layout.preacts} == WITHOUT_PREACTS.get(name, set())
    for before, stage in zip(view.layout.preacts, view.layout.stages, strict=True):
        six = "mobilenetv1" in name  # the others have no upper end
        limited = outputs[before].clamp(0, 6) if six else outputs[before].relu()
        assert torch.equal(outputs[before] if before == stage else limited, outputs[stage])
    torch.testing.assert_close(view.fold_batch_norms()(x).logits, outputs.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", USUALLY)
def test_training_through_the_chain_is_the_librarys(name: str) -> None:
    """The same random numbers (dropout, stochastic depth) and the same running statistics."""
    view, x = build_network(name, 7, (3, FAMILIES[name], FAMILIES[name])), pixels(name, 4)
    plain = build_network(name, 7, (3, FAMILIES[name], FAMILIES[name]))
    plain.module.load_state_dict(view.module.state_dict())
    for network in (view, plain):
        network.train()
    torch.manual_seed(3)
    view(x).logits.square().mean().backward()
    torch.manual_seed(3)
    plain.module(x).square().mean().backward()
    for (key, ours), theirs in zip(view.module.named_parameters(), plain.module.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad) if ours.grad is not None else theirs.grad is None, key
    assert all(map(torch.equal, view.module.buffers(), plain.module.buffers()))


@pytest.mark.parametrize("name", USUALLY)
def test_a_part_can_be_inserted_behind_any_unit(name: str) -> None:
    view, x = network(name), pixels(name)
    logits = view(x).logits
    for unit in view.units[:-1]:
        shape = view.shape(unit)
        seen: list[tuple[int, ...]] = []
        module = nn.Identity()
        module.register_forward_hook(lambda module, given, out, seen=seen: seen.append(tuple(out.shape[1:])))
        assert torch.equal(view.insert(unit, "own", module)(x).logits, logits) and seen[-1] == shape, unit


def test_maps_are_channels_first_and_tokens_are_maps_of_their_patches() -> None:
    swin, vit = network("timm:swin_tiny_patch4_window7_224"), network("timm:test_vit")
    assert swin.shapes("stages") == ((96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2))
    assert swin(pixels("timm:swin_tiny_patch4_window7_224")).stages[0].is_contiguous(memory_format=torch.channels_last)
    assert vit.layout.prefix_tokens == 1 and vit.shape(vit.layout.stages[0]) == (5, 64)
    outputs = vit(pixels("timm:test_vit"))
    assert vit.shapes("stages")[0] == tuple(outputs.stages[0].shape[1:]) == (64, 2, 2)
    assert vit.shapes("blocks")[0] == tuple(outputs.blocks[0].shape[1:]) == (5, 64)


def test_tokens_to_a_map_and_back() -> None:
    tokens = torch.randn(2, 10, 3)
    maps = as_map(tokens, 1)
    assert maps.shape == (2, 3, 3, 3) and torch.equal(maps[0, :, 1, 2], tokens[0, 1 + 5])
    back = as_tokens(maps, 1)
    assert torch.equal(back[:, 1:], tokens[:, 1:])
    torch.testing.assert_close(back[:, 0], tokens[:, 1:].mean(1))
    vit = network("timm:test_vit")
    unit = vit.layout.stages[-1]
    feature = torch.randn(2, 64, 2, 2)
    assert torch.equal(vit.resume(unit, feature), vit.resume(unit, as_tokens(feature, 1)))


def test_a_teacher_with_a_size_and_a_normalisation_of_its_own() -> None:
    """It sees the batch resized, and normalised by its own mean and deviation."""
    task, protocol = get_task("digits"), load_protocol("digits-demo")
    data = task.open(Path(), protocol, torch.device("cpu"))
    view = data.build("timm:test_vit@48").eval()
    assert view.units[0] == "resize" and view.shapes("stages")[0] == (64, 3, 3)
    batch = next(iter(data.batches(0, 1)))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    with torch.no_grad():
        logits = view(batch.inputs((mean, std))).logits
        raw = batch.images.permute(0, 3, 1, 2).float() / 255
        raw = (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        resized = nn.functional.interpolate(raw, size=(48, 48), mode="bilinear", antialias=True)
        torch.testing.assert_close(logits, view.module(resized), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(view.plain()(raw), logits, rtol=1e-4, atol=1e-5)
    assert list(view.plain().state_dict()) == list(view.module.state_dict())


def test_table_3s_networks_have_the_known_sizes() -> None:
    """specs: parameters and connectors of Block-KD for the two pairs."""
    shape = (3, 224, 224)
    small = [build_network(name, 1000, shape) for name in ("torchvision:resnet18", "MobileNetV1")]
    assert networks.count(small[1].parameters()) == 4_231_976
    large = [build_network(f"torchvision:resnet{depth}", 1000, shape) for depth in (34, 50)]
    assert small[1].shapes("stages") == ((128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7))
    for student, teacher, count in zip(small, large, (350_080, 2_792_960), strict=True):
        method = kd_methods.build("block_kd", student, teacher.requires_grad_(False), DataInfo(10, 1000))
        assert networks.count(method.parameters()) == count


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:resnet81", "did you mean"),
        ("timm:resnet18@99999999", "sizes are 8 to 2048"),
        (f"torchvision:resnet18@{'9' * 9000}", "sizes are 8 to 2048"),
        ("timm:resnet18@7", "sizes are 8 to 2048"),
        ("timm:resnet18.a1_in1k", "the network is timm:resnet18"),
        ("torchvision:resnet81", "did you mean"),
        ("timm:deit_tiny_distilled_patch16_224", "no one vector"),
        ("torchvision:vit_b_16", "@SIZE resizes them"),
        ("timm:mobilevit_xxs", "cannot be cut"),
    ],
)
def test_a_network_that_cannot_be_had_is_one_line(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        build_network(name, 7, (3, 64, 64))
    assert "\n" not in str(caught.value)


def test_what_is_folded_early_is_compiled_as_the_network_is() -> None:
    view = build_network("resnet8", 7).requires_grad_(False).eval()
    frozen = view.fold_batch_norms()
    view.compiles = 64
    assert view.fold_batch_norms() is frozen and frozen.compiles == 64


@pytest.mark.slow
def test_a_compiled_network_computes_the_same() -> None:
    """Also a copy of it, which has a pass of its own. (Needs a C++ compiler, and takes it a while.)"""
    view, x = build_network("timm:test_vit", 7, (3, 32, 32)), pixels("timm:test_vit")
    wanted = view.eval()(x, at=view.units)
    view.compiles = len(x)
    for one in (view, copy.deepcopy(view)):
        compiled = one(x, at=view.units)
        for unit in view.units:
            torch.testing.assert_close(compiled[unit], wanted[unit], rtol=1e-4, atol=1e-5)
        one.train()(x).logits.sum().backward()
        assert all(parameter.grad is not None for parameter in one.parameters())
        one.eval()


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_efficientnet"])
def test_stochastic_depth_changes_a_network_of_timm_in_training_alone(name: str) -> None:
    """Units, layout, initial weights and evaluation are those without; its rates are timm's."""
    import timm

    views: list[NetworkView] = []
    for rate in (None, 0.3, 0.0):
        torch.manual_seed(2)
        views.append(build_network(name, 7, (3, FAMILIES[name], FAMILIES[name]), drop_path=rate))
    usual, dropping, never = views
    assert usual.layout == dropping.layout and usual.units == dropping.units
    theirs = timm.create_model(name.removeprefix("timm:"), drop_path_rate=0.3)
    assert depths(dropping) == depths(theirs) and max(depths(dropping)) > 0.2 and depths(never) == []
    assert all(map(torch.equal, usual.parameters(), dropping.parameters()))
    x = pixels(name)
    logits = [view.eval()(x).logits for view in views]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def depths(module: nn.Module) -> list[float]:
    return [part.drop_prob for part in module.modules() if type(part).__name__ == "DropPath"]


@pytest.mark.parametrize("name", ["timm:densenet121", "torchvision:resnet18", "MobileNetV1"])
def test_a_network_without_stochastic_depth_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' has no stochastic depth") as caught:
        build_network(name, 7, (3, 64, 64), drop_path=0.1)
    assert "\n" not in str(caught.value)
    assert build_network(name, 7, (3, 64, 64), drop_path=0.0).units == build_network(name, 7, (3, 64, 64)).units


def test_the_first_of_its_name_in_a_process_is_as_the_others() -> None:
    """Of each name one network is traced, which leaves nothing behind in it."""
    built = []
    for _ in range(2):
        torch.manual_seed(0)
        built.append(build_network("timm:mobilenetv2_050", 7, (3, 32, 32)).module.state_dict())
    assert all(torch.equal(value, built[1][name]) for name, value in built[0].items())


def test_the_paper_s_vision_transformers_start_as_its_code_has_them() -> None:
    """Thegolfingocto/KD_wo_CE ViT.py and TransformerBlocks.py: torch's attention, torchvision's MLP, its own ends."""
    torch.manual_seed(0)
    vit = build_network("vit_ett", 10).module.vit
    block, width, hidden = vit.blocks[3], 192, 576
    wanted = {
        vit.patch_embed.proj.weight: (1 / 48) ** 0.5,
        vit.pos_embed: 0.02,
        block.attn.qkv.weight: (2 / (4 * width)) ** 0.5,
        block.attn.proj.weight: (1 / (3 * width)) ** 0.5,
        block.mlp.fc1.weight: (2 / (width + hidden)) ** 0.5,
        block.mlp.fc2.weight: (2 / (width + hidden)) ** 0.5,
    }
    for parameter, deviation in wanted.items():
        assert parameter.std().item() == pytest.approx(deviation, rel=0.03)
    zero = (vit.cls_token, vit.patch_embed.proj.bias, block.attn.qkv.bias, block.attn.proj.bias, *vit.head.parameters())
    assert not any(parameter.any() for parameter in zero)


def test_attention_counts_on_a_cpu_too() -> None:
    """Of an 8x8 grid of patches and a class token, in eight blocks: queries with keys, and weights with values."""
    vit, x = build_network("vit_ett", 10).module, torch.randn(1, 3, 32, 32)
    tokens, width, hidden, blocks = 65, 192, 576, 8
    linear = tokens * width * (3 * width + width + 2 * hidden)
    wanted = 64 * 48 * width + blocks * (linear + 2 * tokens * tokens * width) + width * 10
    assert networks.macs(vit, x) == wanted
    with Operations() as counted:
        vit(x).sum().backward()
    assert 2.9 < counted.total / (2 * wanted) < 3.2, (
        "of each product two more on the way back, attention's scores again"
    )
