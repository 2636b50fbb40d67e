"""Networks: against the field's reference values, and what must hold of every registered name."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks import networks, timm_models
from benchmarks.networks import NetworkView, build_network, fold_batch_norms
from kd_methods.contract import FIELDS, Outputs
from kd_methods.errors import UserError

GOLDENS = Path(__file__).parents[1] / "goldens"
MODELS: dict[str, Any] = json.loads((GOLDENS / "models.json").read_text())["models"]
LARGE = {"vit_b", "vit_b_p8", "ResNet34_64"}  # of the same classes as their smaller kin
NAMES = [name for name in networks.names() if networks.modality_of(name) == "images" and name not in LARGE]
CLASSES = 7
SIDE = 16
each_name = pytest.mark.parametrize("name", NAMES)


def load_fill() -> Any:
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDENS / "fill.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fresh(name: str, seed: int = 0, side: int = SIDE) -> NetworkView:
    """A network whose batch-norms are far from the identity, so that folding and buffers matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        view = build_network(name, CLASSES, (3, side, side))
        for module in view.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.uniform_(module.weight, 0.7, 1.3)
                nn.init.normal_(module.bias, 0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, nn.Linear) and not module.weight.any():  # a head that starts at zero
                nn.init.normal_(module.weight, 0, 0.1)
    return view.eval()


@functools.cache
def evaluated(name: str) -> tuple[NetworkView, Tensor, Outputs]:
    """A network in eval mode, an input, and everything of its pass. Shared between tests: none may change it."""
    view = fresh(name).requires_grad_(False)
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return view, x, view(x, at=view.units, fields=FIELDS)


def assert_pooled(name: str, outputs: Outputs, last: str) -> None:
    """The pooled vector is the mean of the last map, or of the last tokens."""
    if not name.endswith("_bn"):  # two linear layers lie between
        value = outputs[last]
        assert_close(outputs.pooled, value.mean((2, 3) if value.dim() == 4 else 1), 1e-5)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def equal_states(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def assert_close(tensor: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    """Relative to the largest value: deep random networks have large outputs."""
    assert tensor.shape == wanted.shape
    assert float((tensor - wanted).abs().max()) <= tolerance * float(wanted.abs().max()) + 1e-6


def assert_golden(value: Tensor, golden: dict[str, Any], what: str) -> None:
    assert list(value.shape) == golden["shape"], what
    value = value.double()
    assert float(value.abs().mean()) == pytest.approx(golden["abs_mean"], rel=1e-4), what
    # A mean may cancel to nearly nothing, so it is measured by the size of what was averaged.
    assert abs(float(value.mean()) - golden["mean"]) <= 1e-4 * golden["abs_mean"], what


@pytest.mark.parametrize("name", MODELS)
def test_golden(name: str):
    golden, fill = MODELS[name], load_fill()
    view = build_network(name, 100)
    assert sum(p.numel() for p in view.module.parameters()) == golden["params"]
    assert [(k, list(v.shape)) for k, v in view.module.state_dict().items()] == list(golden["state_dict"].items())
    with torch.no_grad():
        fill.fill(view.module)
        view.eval()
        x = fill.golden_input()
        stem = "block0" if name.startswith("vgg") else view.units[0]
        outputs = view(x, at=(stem,))
        logits = view.module(x)
    assert torch.equal(logits, outputs.logits)
    scale = golden["logits_abs_mean"]
    assert float(logits.abs().mean()) == pytest.approx(scale, rel=1e-4)
    assert_close(logits[:, :5] / scale, torch.tensor(golden["logits_first5"]) / scale)
    assert list(outputs.pooled.shape) == golden["pooled_shape"]
    stages, preacts = (outputs[stem], *outputs.stages), (outputs[stem], *outputs.preacts)
    assert len(stages) == len(golden["stages"])
    for i, (value, wanted) in enumerate(zip(stages, golden["stages"], strict=True)):
        assert_golden(value, wanted, f"stage {i}")
    if golden["preact_stages"]:
        for i, (value, wanted) in enumerate(zip(preacts, golden["preact_stages"], strict=True)):
            assert_golden(value, wanted, f"preact {i}")
    else:
        assert all(torch.equal(s, p) for s, p in zip(outputs.stages, outputs.preacts, strict=True))


def test_the_families_are_complete():
    more = {"resnet44", "wrn_16_1", "vgg19", "ResNet18"}
    assert set(MODELS) | more <= set(NAMES)


def some(units: tuple[str, ...]) -> list[str]:
    """The ends of a chain and a few units between, where a whole pass from each would take long."""
    return list(units) if len(units) <= 12 else [*units[:: len(units) // 6], units[-1]]


@each_name
def test_resume_at_every_unit_equals_the_pass(name: str):
    view, _x, outputs = evaluated(name)
    # Unit by unit on copies: a layer that works in place would show in what the one pass has kept.
    feature = outputs[view.units[0]].clone()
    for unit, following in zip(view.units, view.units[1:], strict=False):
        assert torch.equal(feature, outputs[unit]), unit
        feature = view.resume(unit, feature.clone(), until=following)
    assert torch.equal(feature, outputs.logits)
    for unit in some(view.units):
        assert torch.equal(view.resume(unit, outputs[unit].clone()), outputs.logits), unit
    middle = view.units[len(view.units) // 2]
    assert torch.equal(view.resume(view.units[0], outputs[view.units[0]].clone(), until=middle), outputs[middle])


@each_name
def test_what_is_kept_changes_nothing(name: str):
    view, x, outputs = evaluated(name)
    before = x.clone()
    unit = view.units[len(view.units) // 2]
    alone = view(x, at=(unit,), fields=())
    assert torch.equal(alone[unit], outputs[unit]) and torch.equal(alone.logits, outputs.logits)
    assert torch.equal(x, before)
    assert torch.equal(view.module(x), outputs.logits) and torch.equal(view.plain()(x), outputs.logits)


@each_name
def test_shapes_are_the_real_ones(name: str):
    view, _, outputs = evaluated(name)
    for unit in view.units:
        assert view.shape(unit) == tuple(outputs[unit].shape[1:]), unit
    for name_of in ("stages", "preacts", "blocks"):
        assert view.shapes(name_of) == tuple(tuple(f.shape[1:]) for f in getattr(outputs, name_of))
    assert view.shapes("last_map") == (tuple(outputs.last_map.shape[1:]),)
    assert view.shapes("pooled") == (tuple(outputs.pooled.shape[1:]),)
    assert outputs.logits.shape == (2, CLASSES)
    assert_pooled(name, outputs, view.layout.last_map)


@each_name
def test_asking_for_shapes_changes_nothing(name: str):
    view = fresh(name).train()
    before = state_of(view)
    view.shapes("stages")
    assert view.training and all(module.training for module in view.modules())
    assert equal_states(before, state_of(view))
    view = fresh(name)
    view.shapes("stages")
    assert not any(module.training for module in view.modules())


def test_asking_for_shapes_leaves_a_frozen_part_frozen():
    view = build_network("resnet8", CLASSES, (3, SIDE, SIDE)).train()
    view.module.bn1.eval()  # type: ignore[union-attr]
    view.insert("stem", "extra", nn.Identity()).shapes("stages")
    assert not view.module.bn1.training and view.module.conv1.training  # type: ignore[union-attr]


@each_name
def test_rectified_units_are_non_negative(name: str):
    view, _, outputs = evaluated(name)
    assert view.layout.rectified <= set(view.units)
    for unit in view.layout.rectified:
        assert float(outputs[unit].min()) >= 0, unit
    # What methods match says whether it is rectified: a map that has both signs is not called so.
    for unit in {*view.layout.stages, *view.layout.preacts, *view.layout.blocks, view.layout.last_map}:
        assert (float(outputs[unit].min()) >= 0) == (unit in view.layout.rectified), unit


@each_name
def test_preacts_are_the_stages_before_their_relu(name: str):
    view, _, outputs = evaluated(name)
    for stage, preact in zip(outputs.stages, outputs.preacts, strict=True):
        assert stage.shape == preact.shape
        if not name.startswith("wrn"):  # there a batch-norm lies between the two
            signed = preact if view.layout.preacts == view.layout.stages else preact.relu()
            assert torch.equal(signed.flatten(1).sort().values, stage.flatten(1).sort().values)


@each_name
def test_folded(name: str):
    view = fresh(name).requires_grad_(False)
    _, x, outputs = evaluated(name)
    before = state_of(view)
    parameters = [id(p) for p in view.parameters()]
    with_folded_norms = view.fold_batch_norms()
    assert with_folded_norms is view.fold_batch_norms()
    assert with_folded_norms.units == view.units and with_folded_norms.layout == view.layout
    assert not with_folded_norms.training and not any(p.requires_grad for p in with_folded_norms.parameters())
    of_folded = with_folded_norms(x, at=view.units)
    assert_close(of_folded.logits, outputs.logits)
    for unit in view.units:
        assert_close(of_folded[unit], outputs[unit])
    for unit in some(view.units):
        assert_close(with_folded_norms.resume(unit, outputs[unit].clone()), outputs.logits)
    assert equal_states(before, state_of(view)) and [id(p) for p in view.parameters()] == parameters
    assert with_folded_norms is view or not any(module is with_folded_norms for module in view.modules())
    bare = [type(m) for m in view.module.modules()].count(nn.BatchNorm2d)
    left = [type(m) for m in with_folded_norms.module.modules()].count(nn.BatchNorm2d)
    assert left < bare or not bare
    assert not _norms_after_convolutions(with_folded_norms, x)


class Scale(nn.Module):
    """A module with a parameter that fits anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def _norms_after_convolutions(view: NetworkView, x: Tensor) -> list[str]:
    """Batch-norms whose input is the very tensor that a convolution of the same unit returned."""
    made: dict[int, tuple[int, Tensor]] = {}
    names: list[str] = []
    position = 0

    def after_conv(module: nn.Module, inputs: Any, output: Tensor) -> None:
        made[id(output)] = (position, output)

    def before_norm(label: str, module: nn.Module, inputs: Any) -> None:
        if made.get(id(inputs[0]), (-1, None))[0] == position:
            names.append(label)

    feature = view(x, at=view.units[:1])[view.units[0]]
    hooks = []
    for label, module in view.module.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(functools.partial(before_norm, label)))
    for position, (unit, following) in enumerate(zip(view.units, view.units[1:], strict=False), 1):  # noqa: B007
        feature = view.resume(unit, feature, until=following)
    for hook in hooks:
        hook.remove()
    return names


def test_folding_an_untraceable_module_copies_it():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) if float(x.sum()) > 0 else x

    odd = Odd().eval()
    copied = fold_batch_norms(odd)
    x = torch.rand(2, 3, 4, 4)
    assert copied is not odd and torch.equal(copied(x), odd(x))


def test_a_convolution_read_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + self.bn(y)

    twice = Twice().eval()
    nn.init.uniform_(twice.bn.weight, 2, 3)
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(fold_batch_norms(twice)(x), twice(x), atol=1e-6)


@each_name
@torch.no_grad()
def test_insert(name: str):
    view, (_, x, outputs) = fresh(name), evaluated(name)
    for unit in (view.layout.last_map, view.layout.stages[0]):
        identity = view.insert(unit, "extra", nn.Identity())
        inserted = identity(x, at=("extra", unit))
        assert torch.equal(inserted.logits, outputs.logits) and torch.equal(inserted["extra"], inserted[unit])
        assert identity.units.index("extra") == view.units.index(unit) + 1
        assert view.units.count("extra") == 0

        scaling = Scale()
        scaled = view.insert(unit, "extra", scaling)
        inserted = scaled(x, at=("extra", unit))
        assert_close(inserted["extra"], 3 * outputs[unit], 1e-6)
        assert not torch.equal(inserted.logits, outputs.logits)
        assert_close(scaled.plain()(x), inserted.logits, 1e-6)
        assert any(p is scaling.weight for p in scaled.parameters())
        assert sum(p.numel() for p in scaled.parameters()) == sum(p.numel() for p in view.parameters()) + 1
        assert "parts.extra.weight" in scaled.plain().state_dict()
        assert set(view.module.state_dict()) < set(scaled.plain().state_dict())
        at_last = unit == view.layout.last_map
        assert scaled.layout.last_map == ("extra" if at_last else view.layout.last_map)
        assert_pooled(name, inserted, scaled.layout.last_map)
        assert_close(scaled.fold_batch_norms()(x, fields=()).logits, inserted.logits)
        assert scaled.shape("extra") == view.shape(unit)
        with pytest.raises(UserError, match="extra"):
            scaled.insert(view.layout.stages[0], "extra", nn.Identity())
        again = scaled.insert("extra", "more", nn.Identity())
        assert torch.equal(again(x, fields=()).logits, inserted.logits)
        assert again.layout.last_map == ("more" if at_last else view.layout.last_map)
    with pytest.raises(UserError, match=view.layout.stages[0]):
        view.insert(view.units[0], view.layout.stages[0], nn.Identity())
    assert torch.equal(view(x).logits, outputs.logits), "the network without the module has changed"


@pytest.mark.parametrize("side", [16, 32, 64])
@each_name
def test_input_sizes(name: str, side: int):
    with torch.no_grad():
        view = fresh(name, side=side)
        outputs = view(torch.randn(1, 3, side, side))
        assert outputs.logits.shape == (1, CLASSES) and bool(outputs.logits.isfinite().all())
        assert view.shapes("stages") == tuple(tuple(f.shape[1:]) for f in outputs.stages)
    sides = [shape[-1] for shape in view.shapes("stages")]
    assert sides == sorted(sides, reverse=True) and sides[-1] >= 1


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2x0.5"])
def test_a_gradient_reaches_every_parameter(name: str):
    view = build_network(name, CLASSES, (3, SIDE, SIDE)).train()
    view(torch.randn(4, 3, SIDE, SIDE)).logits.square().mean().backward()
    without = [key for key, p in view.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without, without[:3]


@each_name
def test_timm_knows_the_plain_architecture(name: str):
    assert f"kd_{name}".replace(".", "_") in timm_models.names()
    model = timm.create_model("kd_" + name.replace(".", "_"), num_classes=100)
    module = build_network(name, 100).module
    assert type(model) is type(module) and not isinstance(model, NetworkView)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}
    with torch.no_grad():
        module.load_state_dict(model.state_dict())
        x = torch.randn(2, 3, SIDE, SIDE)
        logits = model.eval()(x)
        assert logits.shape == (2, 100) and torch.equal(logits, module.eval()(x))
    assert (
        timm.create_model("kd_" + name.replace(".", "_"), num_classes=3).state_dict().keys()
        == module.state_dict().keys()
    )


@each_name
def test_deepcopy_is_independent(name: str):
    view, x, outputs = evaluated(name)
    copied = copy.deepcopy(view)
    assert torch.equal(copied(x).logits, outputs.logits)
    with torch.no_grad():
        for p in copied.module.parameters():
            p.zero_()
    assert float(copied(x, fields=()).logits.abs().max()) == 0, "the copy runs the original's layers"
    assert torch.equal(view(x, fields=()).logits, outputs.logits)


def test_deepcopy_keeps_inserted_parts_and_folded_copies():
    view, x, _ = evaluated("resnet8")
    scaling = nn.Conv2d(64, 64, 1, bias=False)
    scaled = view.insert(view.layout.last_map, "extra", scaling)
    with_folded_norms = scaled.fold_batch_norms()(x, fields=()).logits
    copied = copy.deepcopy(scaled)
    assert torch.equal(copied(x, fields=()).logits, scaled(x, fields=()).logits)
    with torch.no_grad():
        copied.parts["extra"].weight.zero_()  # type: ignore[operator, union-attr]
    assert not torch.equal(copied(x, fields=()).logits, scaled(x, fields=()).logits)
    assert torch.equal(scaled.fold_batch_norms()(x, fields=()).logits, with_folded_norms)


def test_only_what_is_asked_for_is_kept():
    view, x, _ = evaluated("resnet8")
    outputs = view(x, at=("stem",), fields=("pooled",))
    assert outputs["stem"].shape[1] == 16 and outputs.pooled.shape == (2, 64)
    for field in ("stages", "preacts", "blocks", "last_map"):
        with pytest.raises(LookupError, match="needs"):
            getattr(outputs, field)


def test_unknown_names():
    with pytest.raises(UserError, match="resnet20") as error:
        build_network("resnet-20")
    assert "\n" not in str(error.value)
    view, x, _ = evaluated("resnet8")
    feature = torch.zeros(2, 16, SIDE, SIDE)
    for call in (
        lambda: view(x, at=("layer1.9",)),
        lambda: view.resume("layer1.9", feature),
        lambda: view.resume("stem", feature, until="layer1.9"),
        lambda: view.insert("layer1.9", "extra", nn.Identity()),
        lambda: view.shape("layer1.9"),
    ):
        with pytest.raises(UserError, match=r"layer1\.0"):
            call()


def test_a_second_network_of_one_name_is_refused():
    with pytest.raises(UserError, match="resnet8"):
        networks.register_network("resnet8", lambda classes: None)  # type: ignore[arg-type, return-value]


def test_initialisation_follows_torchs_seed():
    torch.manual_seed(3)
    first = state_of(build_network("wrn_16_1", CLASSES))
    torch.manual_seed(3)
    assert equal_states(first, state_of(build_network("wrn_16_1", CLASSES)))
    assert not equal_states(first, state_of(build_network("wrn_16_1", CLASSES)))


def test_a_registered_title_is_printed_instead_of_what_the_rule_makes() -> None:
    assert networks.title("resnet20w29") == "ResNet-20, wider" and networks.title("wrn_40_2") == "WRN-40-2"
