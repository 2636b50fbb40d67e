"""A student of detection as mmdetection opens it: a whole configuration, its weights, and the images that it was
evaluated on. Imports nothing of mmdetection before something is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kd_methods.errors import UserError

from ..common.files import write_bytes, write_json, write_text
from ..common.weights import to_bytes
from ..common.workspace import Workspace
from ..driver.convert import loaded
from ..driver.verify import protocol_of
from ..store.cell import Cell
from ..tasks import get_task
from .networks.configurations import configuration_file, model_configuration, prepare, without_initial_weights
from .tasks.coco import DetectionFiles

CONFIGURATION, WEIGHTS, ANNOTATIONS = "config.py", "weights.pth", "annotations.json"

HERE = "{{ fileDirname }}/"
"""As mmengine's configurations name the folder that they lie in."""


def write(cell: Cell, weights: Mapping[str, Tensor], folder: Path, workspace: Workspace) -> None:
    """Write ``config.py``, ``weights.pth`` and ``annotations.json`` into a folder.

    ``init_detector`` and mmengine's Runner open the first two; the last has the objects of the validation set by the
    suite's labels, for a file of the user's own may have its classes in another order, which mmdetection goes by.

    Raises:
        UserError: the extra [detection] or the task's data are missing, these are other data than the run's, or the
            run deploys more than a plain detector.
    """
    prepare()
    from mmdet.registry import MODELS
    from mmengine.config import Config

    protocol, task = protocol_of(cell), get_task(cell.task)
    if task.fingerprint(workspace.data_root, protocol) != cell.data:
        raise UserError(f"the data of task {cell.task} in {workspace.data_root} are other data than the run's")
    files: DetectionFiles = task.open(workspace.data_root, protocol, workspace.device)
    assert protocol.detection is not None
    model = model_configuration(cell.student, len(files.classes), protocol.detection.pretrained)
    without_initial_weights(model)
    loaded(cell, MODELS.build(model), weights)
    content = files.val.content(files.classes)
    images = os.path.commonpath([Path(path).absolute().parent for path in files.val.paths])
    for image in content["images"]:
        image["file_name"] = os.path.relpath(os.path.abspath(image["file_name"]), images)  # noqa: PTH100
    scale = protocol.detection.long_side, protocol.detection.test_side
    config = _configuration(files.classes, Path(images), scale)
    write_json(folder / ANNOTATIONS, content)
    meta = {"dataset_meta": {"classes": list(files.classes)}}
    write_bytes(folder / WEIGHTS, to_bytes({"meta": meta, "state_dict": dict(weights)}))
    write_text(folder / CONFIGURATION, Config({"model": model, **config}).pretty_text)


def _configuration(classes: tuple[str, ...], images: Path, scale: tuple[int, int]) -> dict[str, Any]:
    """All of a configuration but the model: what images go through, how they are evaluated, and mmengine's defaults."""
    from mmengine.config import Config

    from .training.data import evaluation_transforms

    pipeline = [{"type": "LoadImageFromFile"}, *evaluation_transforms(scale)]
    dataset = {
        "type": "CocoDataset",
        "metainfo": {"classes": classes},
        "ann_file": HERE + ANNOTATIONS,
        "data_prefix": {"img": f"{images}/"},
        "test_mode": True,
        "pipeline": pipeline,
    }
    loader = {
        "batch_size": 1,
        "num_workers": 2,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": dataset,
    }
    runtime = Config.fromfile(configuration_file("mmdet::_base_/default_runtime"))
    return {
        "test_pipeline": pipeline,
        "test_dataloader": loader,
        "test_evaluator": {"type": "CocoMetric", "ann_file": HERE + ANNOTATIONS, "metric": "bbox"},
        "test_cfg": {"type": "TestLoop"},
        **runtime.to_dict(),
    }
