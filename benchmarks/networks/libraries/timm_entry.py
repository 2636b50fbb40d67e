"""The suite's architectures as models of timm's: ``timm.create_model("kd_resnet20")``.

Importing this module enters those there are; :func:`benchmarks.networks.architectures.register_network` enters later
ones.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, register_notrace_module
from torch import nn

from kd_methods.errors import UserError, unknown

from ...common.places import PROGRAM
from ..architectures import ARCHITECTURES, NEWCOMERS
from ..entry import NetworkEntry
from ..image_classifier import ImageClassifier

CLASSES = 100
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
"""Of CIFAR-100's training images, scaled to [0, 1]; what the suite's protocols on it normalise by."""

default_cfgs: dict[str, dict[str, Any]] = {}
"""Where timm looks for them: in the module of a model's function."""

_OF_TIMM = {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pretrained_strict", "device", "dtype"}
_OF_FEATURES = {"features_only", "out_indices", "feature_cls"}
_OF_NETWORKS = {"num_classes", "in_chans", "global_pool", "drop_rate"}


def enter_timm(entry: NetworkEntry) -> None:
    """Make an architecture a model of timm's, which registers functions by their names and modules."""

    def model(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(entry, name, pretrained, kwargs)

    model.__name__ = model.__qualname__ = name = f"kd_{entry.name}".replace(".", "_")
    model.__module__ = __name__
    default_cfgs[name] = {
        "num_classes": CLASSES,
        "input_size": (3, entry.side, entry.side),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": MEAN,
        "std": STD,
        "license": "mit",
    }
    setattr(sys.modules[__name__], name, model)
    timm.models.register_model(model)


def _create(entry: NetworkEntry, name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    for key in kwargs:
        if key not in _OF_TIMM | _OF_FEATURES | _OF_NETWORKS:
            raise TypeError(unknown(f"argument of {name}", key, _OF_NETWORKS | _OF_FEATURES))  # as timm's models do
    sources = kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
    if pretrained and not any(sources):
        raise UserError(f"{name} has no weights of its own in timm; see {PROGRAM} teachers list")
    facts = _facts(entry)
    features = {}
    if kwargs.get("features_only"):
        if not facts or kwargs.get("feature_cls", "getter") != "getter":
            raise UserError(f"{name} gives features by feature_cls 'getter' alone, and where it has a chain of units")
        features = {"feature_cls": "getter", "out_indices": tuple(range(len(facts["feature_info"])))}
        kwargs.pop("feature_cls", None)
    cfg = {key: facts[key] for key in ("pool_size", "first_conv", "classifier") if key in facts}
    kwargs["pretrained_cfg_overlay"] = {**cfg, **(kwargs.get("pretrained_cfg_overlay") or {})}
    place = {key: kwargs.pop(key, None) for key in ("device", "dtype")}
    model = build_model_with_cfg(
        functools.partial(_built, entry, name), name, pretrained, feature_cfg=features, **kwargs
    )
    return model.to(**place)


def _built(
    entry: NetworkEntry,
    name: str,
    num_classes: int = CLASSES,
    in_chans: int = 3,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
) -> nn.Module:
    if in_chans != 3 or drop_rate:
        refused = f"in_chans={in_chans}" if in_chans != 3 else f"drop_rate={drop_rate}"
        raise UserError(f"{name} reads images of three channels and has no dropout of its own; it refuses {refused}")
    module = entry.build(num_classes or CLASSES)
    if not isinstance(module, ImageClassifier):
        return module
    for kind in {type(child) for child in module.modules() if getattr(child, "fx_leaf", False)}:
        register_notrace_module(kind)
    module.num_classes = num_classes or CLASSES
    if not num_classes or global_pool != "avg":
        module.reset_classifier(num_classes, global_pool)
    for key in ("num_features", "head_hidden_size", "feature_info", "in_chans"):
        setattr(module, key, _facts(entry)[key])
    return module


@functools.cache
def _facts(entry: NetworkEntry) -> dict[str, Any]:
    """What timm asks of an architecture, from a pass without values; nothing of one without a chain of units."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]), torch.no_grad():
        module = entry.build(CLASSES).eval()
        if not isinstance(module, ImageClassifier):
            return {}
        x = torch.zeros(1, 3, entry.side, entry.side)
        last, intermediates = module.forward_intermediates(x)
        hidden = module.forward_head(last, pre_logits=True).shape[1]
    first = next(key for key, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    stages = zip(module.chain().layout.stages, intermediates, strict=True)
    return {
        "in_chans": 3,
        "num_features": last.shape[1] if last.dim() == 4 else last.shape[2],
        "head_hidden_size": hidden,
        "first_conv": first,
        "classifier": module.classifier_at()[0],
        "pool_size": tuple(last.shape[2:]) if last.dim() == 4 else None,
        "feature_info": [
            {"num_chs": x.shape[1], "reduction": entry.side // x.shape[2], "module": stage} for stage, x in stages
        ],
    }


for _entry in ARCHITECTURES.mapping().values():
    enter_timm(_entry)
NEWCOMERS.append(enter_timm)
