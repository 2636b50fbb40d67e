"""What timm asks of its models holds of ``kd_*``: in our words, what its own tests/test_models.py checks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from benchmarks import timm_models
from benchmarks.config.protocol import load_protocol
from benchmarks.networks.architectures import ARCHITECTURES
from benchmarks.networks.entry import NetworkEntry
from benchmarks.networks.libraries import timm_entry
from kd_methods.errors import UserError

FEW = ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "vgg11_bn"]
"""One of each kind; the others with -m slow."""
NAMES = [
    pytest.param(name, marks=() if name.removeprefix("kd_") in FEW else pytest.mark.slow)
    for name in timm_models.names()
]  # fmt: skip
each_name = pytest.mark.parametrize("name", NAMES)


def images(name: str, batch: int = 2) -> Tensor:
    size = timm.get_pretrained_cfg_value(name, "input_size")
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))


@each_name
def test_forward_and_backward(name: str) -> None:
    model = timm.create_model(name, num_classes=5).train()
    logits = model(images(name, 4))
    logits.square().mean().backward()
    assert logits.shape == (4, 5) and not logits.isnan().any()
    assert not [key for key, p in model.named_parameters() if p.grad is None]


@each_name
def test_features_head_and_classifier(name: str) -> None:
    model, x = timm.create_model(name).eval(), images(name)
    cfg = model.default_cfg
    assert model.pretrained_cfg is cfg and cfg["num_classes"] == model.num_classes == 100 and model.in_chans == 3
    assert {f"{cfg['classifier']}.weight", f"{cfg['first_conv']}.weight"} <= model.state_dict().keys()
    assert resolve_data_config(model=model)["mean"] == timm_entry.MEAN
    with torch.no_grad():
        logits, features = model(x), model.forward_features(x)
        hidden = model.forward_head(features, pre_logits=True)
        assert torch.equal(model.forward_head(features), logits)
        assert hidden.shape == (2, model.head_hidden_size)
        assert torch.allclose(model.get_classifier()(hidden), logits, atol=1e-6)
        if cfg["pool_size"]:
            assert features.shape[1:] == (model.num_features, *cfg["pool_size"])
        else:
            assert features.shape[2] == model.num_features
        keys = model.state_dict().keys()
        model.reset_classifier(0)
        assert model.num_classes == 0 and torch.equal(model(x), hidden)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        model.reset_classifier(7, "avg")
        assert model.num_classes == 7 and model(x).shape == (2, 7) and model.state_dict().keys() == keys
        assert timm.create_model(name, num_classes=0, global_pool="")(x).shape == features.shape


@each_name
def test_features_of_stages(name: str) -> None:
    model, x = timm.create_model(name, features_only=True).eval(), images(name)
    with torch.no_grad():
        features = model(x)
    assert len(features) == len(model.feature_info.channels()) >= 3
    for value, channels, reduction in zip(
        features, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert value.shape == (2, channels, *2 * (math.ceil(x.shape[-1] / reduction),))
    plain = timm.create_model(name).eval()
    with torch.no_grad():
        last, every = plain.forward_intermediates(x)
        assert torch.equal(last, plain.forward_features(x)) and len(every) == len(features)
        (first,) = plain.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
        assert torch.equal(first, every[0])


@each_name
def test_fx_and_torchscript(name: str) -> None:
    model, x = timm.create_model(name).eval(), images(name)
    settings: dict[str, Any] = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    last = get_graph_node_names(model, tracer_kwargs=settings)[1][-1]
    traced = create_feature_extractor(model, [last], tracer_kwargs=settings)
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(traced(x)[last], logits)
        assert torch.allclose(torch.jit.script(model)(x), logits, atol=1e-5)
        assert torch.allclose(torch.jit.script(traced)(x)[last], logits, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"drop_rate": 0.1}, "refuses drop_rate=0.1"),
        ({"in_chans": 1}, "refuses in_chans=1"),
        ({"feature_only": True}, "did you mean features_only"),
        ({"features_only": True, "feature_cls": "hook"}, "'getter' alone"),
        ({"global_pool": "max"}, "have avg"),
        ({"global_pool": ""}, "have avg"),
        ({"pretrained": True}, "teachers list"),
    ],
)
def test_what_is_not_supported_is_refused(arguments: dict[str, Any], words: str) -> None:
    kind = TypeError if "feature_only" in arguments else UserError
    with pytest.raises(kind, match=words) as error:
        timm.create_model("kd_resnet8", **arguments)
    assert "\n" not in str(error.value) and "kd_" in str(error.value)


def test_what_timm_s_scripts_always_pass_is_taken() -> None:
    model = timm.create_model("kd_resnet8", num_classes=10, drop_rate=0.0, in_chans=3, scriptable=False)
    assert model.num_classes == 10


def test_statistics_are_those_of_the_protocols() -> None:
    protocol = load_protocol("cifar100-crd240")
    assert (protocol.mean, protocol.std) == (timm_entry.MEAN, timm_entry.STD)


def test_every_network_of_the_suite_is_one_of_timm_s() -> None:
    assert set(timm.list_models("kd_*")) >= {f"kd_{name}".replace(".", "_") for name in ARCHITECTURES.mapping()}


def test_timm_s_distillation_works_on_them(tmp_path: Path) -> None:
    """With networks, and with a teacher by its name and a file, as `train.py --kd-model-name` has it."""
    task = pytest.importorskip("timm.task", reason="timm has no timm.task")
    student, teacher = (timm.create_model(name, num_classes=5) for name in ("kd_resnet8", "kd_wrn_16_1"))
    for kind in (task.LogitDistillationTask, task.FeatureDistillationTask):
        result = kind(student, teacher, criterion=nn.CrossEntropyLoss(), verbose=False)(
            images("kd_resnet8"), torch.tensor([0, 1])
        )
        assert result["loss"].isfinite() and result["output"].shape == (2, 5)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    device, dtype = torch.device("cpu"), torch.float64
    named = task.DistillationTeacher(
        "kd_wrn_16_1", 5, pretrained_path=str(tmp_path / "teacher.pt"), device=device, dtype=dtype
    )
    weights = named.model.state_dict()
    assert {value.dtype for value in weights.values()} == {dtype, torch.long}
    assert all(torch.equal(weights[key].to(value), value) for key, value in teacher.state_dict().items())


def test_a_network_without_a_chain_is_a_plain_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_entry, "default_cfgs", {})
    timm_entry.enter_timm(NetworkEntry("bare_for_timm", lambda k: nn.Sequential(nn.Flatten(), nn.Linear(12, k))))
    assert timm.create_model("kd_bare_for_timm", num_classes=3)(torch.zeros(1, 3, 2, 2)).shape == (1, 3)
    with pytest.raises(UserError, match="chain of units"):
        timm.create_model("kd_bare_for_timm", features_only=True)
