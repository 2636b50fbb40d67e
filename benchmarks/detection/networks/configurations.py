"""Configurations of mmdetection by name, and what is changed in them.

Importing this module imports nothing of mmdetection, so that plans can be made without the extra [detection].
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_methods.errors import UserError, unknown

from ...common.files import locked


@dataclass(frozen=True)
class Recipe:
    """A configuration of mmdetection, and what is changed in its model."""

    config: str
    changes: Mapping[str, Any]


def _resnet(depth: int, **more: Any) -> dict[str, Any]:
    narrow = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
    base = more.get("base_channels", 64)
    init = {"type": "Pretrained", "checkpoint": f"torchvision://resnet{depth}"}
    backbone = {"depth": depth, "init_cfg": init, **more}
    return {"backbone": backbone, "neck": {"in_channels": [width * base // 64 for width in narrow]}}


_MOBILE = {
    # Stages with 24, 32, 96 and 320 channels, none of them frozen, as mdistiller has them.
    "backbone": {
        "_delete_": True,
        "type": "MobileNetV2",
        "out_indices": (1, 2, 4, 6),
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "norm_eval": True,
        "init_cfg": {"type": "Pretrained", "checkpoint": "open-mmlab://mmdet/mobilenet_v2"},
    },
    "neck": {"in_channels": [24, 32, 96, 320]},
}


_NARROW, _POOLED = 32, 5
"""Width of the small detectors' pyramids, and side of the regions that their heads see."""


def _small(base_channels: int) -> dict[str, Any]:
    """ResNet-18, pyramid, heads and samples of a size that trains on a CPU."""
    resnet = _resnet(18, base_channels=base_channels)
    layer = {"output_size": _POOLED}
    head = {"in_channels": _NARROW, "fc_out_channels": 128, "roi_feat_size": _POOLED}
    return {
        **resnet,
        "neck": {**resnet["neck"], "out_channels": _NARROW},
        "rpn_head": {"in_channels": _NARROW, "feat_channels": _NARROW},
        "roi_head": {"bbox_roi_extractor": {"out_channels": _NARROW, "roi_layer": layer}, "bbox_head": head},
        "train_cfg": {"rpn_proposal": {"nms_pre": 300, "max_per_img": 128}, "rcnn": {"sampler": {"num": 32}}},
        "test_cfg": {"rpn": {"nms_pre": 300, "max_per_img": 128}},
    }


def _small_dense(base_channels: int) -> dict[str, Any]:
    """As :func:`_small`, of a one-stage detector."""
    resnet = _resnet(18, base_channels=base_channels)
    # Of usual groups one would be a single channel, which on the coarsest map of a small image is a single value.
    norm = {"type": "GN", "num_groups": 8, "requires_grad": True}
    head = {"in_channels": _NARROW, "feat_channels": _NARROW, "stacked_convs": 1, "norm_cfg": norm}
    return {**resnet, "neck": {**resnet["neck"], "out_channels": _NARROW}, "bbox_head": head}


_FASTER, _RETINA = "_base_/models/faster-rcnn_r50_fpn.py", "_base_/models/retinanet_r50_fpn.py"


_GFL = "gfl/gfl_r50_fpn_1x_coco.py"


RECIPES = {
    **{f"faster_rcnn_r{depth}": Recipe(_FASTER, _resnet(depth)) for depth in (18, 34, 50, 101)},
    "faster_rcnn_mobilenetv2": Recipe(_FASTER, _MOBILE),
    **{f"retinanet_r{depth}": Recipe(_RETINA, _resnet(depth)) for depth in (18, 50, 101)},
    **{f"gfl_r{depth}": Recipe(_GFL, _resnet(depth)) for depth in (18, 50, 101)},
    **{f"faster_rcnn_small_r18x{divisor}": Recipe(_FASTER, _small(64 // divisor)) for divisor in (2, 4)},
    **{f"gfl_small_r18x{divisor}": Recipe(_GFL, _small_dense(64 // divisor)) for divisor in (2, 4)},
}
"""Detectors of the field's pairs. The small ones are for demonstrations: their pyramids have 32 channels, and their
backbones a half (x2) or a quarter (x4) of the usual width."""


def available() -> bool:
    """Whether the extra [detection] is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("mmdet", "mmengine", "mmcv", "pycocotools"))


def _of_mmdet(name: str) -> Path:
    """A file that mmdetection comes with, by its path or the last part of it."""
    spec = importlib.util.find_spec("mmdet")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / ".mim" / "configs"
    wanted = name.removesuffix(".py")
    path = folder / f"{wanted}.py"
    if not path.is_file():
        paths = list(folder.glob(f"**/{wanted}.py"))
        if len(paths) != 1:
            every = [str(file.relative_to(folder))[:-3] for file in folder.glob("*/*.py")]
            raise unknown("configuration of mmdet", wanted, every)
        path = paths[0]
    return path


def _of_user(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise unknown("detector", name, RECIPES)
    return path


@dataclass(frozen=True)
class NameForm:
    """A form of detectors' names.

    has      whether a name has it
    file     of the configuration of such a name; raises UserError where there is none
    shipped  whether the file comes with mmdetection
    """

    has: Callable[[str], bool]
    file: Callable[[str], Path]
    shipped: bool


_MMDET = "mmdet::"

FORMS = (
    NameForm(RECIPES.__contains__, lambda name: _of_mmdet(RECIPES[name].config), shipped=True),
    NameForm(lambda name: name.startswith(_MMDET), lambda name: _of_mmdet(name.removeprefix(_MMDET)), shipped=True),
    NameForm(lambda name: name.endswith(".py"), _of_user, shipped=False),
)


def form_of(name: str) -> NameForm | None:
    """The form of a detector's name; None of other names."""
    return next((form for form in FORMS if form.has(name)), None)


def check(name: str) -> None:
    """Raise UserError where a detector of that name cannot be; without the extra only the form of the name is seen."""
    form = form_of(name)
    if not form or not form.shipped or available():
        configuration_file(name)


def check_installed() -> None:
    """Raise UserError where the extra [detection] is missing."""
    if not available():
        raise UserError(
            "detection needs mmdetection, which is not installed: run a table with `extra: detection`, such as table4, "
            "through ./reproduce.sh, which installs the extra [detection]"
        )


def prepare() -> None:
    """Make mmdetection ready to be imported: the operators that its compiled extension would bring.

    To be called before the modules of this room that import mmdetection.

    Raises:
        UserError: the extra [detection] is not installed.
    """
    check_installed()
    warnings.filterwarnings("ignore", module="mmengine|mmcv|mmdet")
    # mmengine's formatter writes its grammar to the user's cache when it is first imported, in place: a process that
    # reads it meanwhile finds half a file. So processes take turns, in a folder of the user's own.
    with locked(Path(tempfile.gettempdir()) / f"kdbench-{os.getuid()}"):
        import mmengine  # noqa: F401
    from . import mmcv_ops  # takes torchvision

    mmcv_ops.install()
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)


def configuration_file(name: str) -> Path:
    """The file of a configuration, one of mmdetection's or of the user's.

    Raises:
        UserError: there is none.
    """
    form = form_of(name)
    if not form:
        raise unknown("detector", name, RECIPES)
    return form.file(name)


def model_configuration(name: str, num_classes: int, pretrained: bool) -> Any:
    """What mmdetection builds a detector from, after :func:`prepare`; see :func:`.detectors.build`.

    Raises:
        UserError: no such detector.
    """
    from mmengine.config import Config, ConfigDict

    recipe = RECIPES.get(name)
    config = Config.fromfile(configuration_file(name)).model
    if recipe:
        config = ConfigDict(Config._merge_a_into_b(dict(recipe.changes), config))
    _set_classes(config, num_classes)
    if not pretrained:
        without_initial_weights(config)
        for mapping in _mappings(config):
            if "frozen_stages" in mapping:
                mapping["frozen_stages"] = -1
            if "norm_eval" in mapping:
                mapping["norm_eval"] = False
    return config


def without_initial_weights(config: Any) -> None:
    """Let a detector of this configuration begin with none of the weights that it names."""
    for mapping in _mappings(config):
        if mapping.get("init_cfg", {}) and mapping["init_cfg"].get("type") == "Pretrained":
            mapping["init_cfg"] = None


def _mappings(config: Any) -> Iterator[Any]:
    """All mappings within a configuration."""
    if isinstance(config, dict):
        yield config
        for value in config.values():
            yield from _mappings(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _mappings(value)


def _set_classes(config: Any, num_classes: int) -> None:
    for mapping in _mappings(config):
        if "num_classes" in mapping and mapping.get("type") != "RPNHead":
            mapping["num_classes"] = num_classes
