"""Data of detection, plans without mmdetection, labels as mmdetection has them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.detection import CPU, needs_mmdetection
from helpers.real_data import RealData

from benchmarks.common.places import ROOT
from benchmarks.config.protocol import load_protocol
from benchmarks.config.published import pair_settings
from benchmarks.config.table_spec import load_table
from benchmarks.detection.networks import configurations
from benchmarks.tasks import get_task
from kd_methods import registry
from kd_methods.errors import UserError

needs_mmdetection()


def test_shapes_are_drawn_once_and_whole(shapes: Path):
    files = get_task("shapes").open(shapes, load_protocol("shapes-demo"), CPU)
    assert files.classes == ("disc", "square", "triangle") and len(files.train.paths) == files.train.count == 64
    assert set(files.train.labels) == {0, 1, 2}
    sides = files.train.boxes[:, 2]
    assert sides.min() < 32 < sides.max()  # small and medium objects


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "annotations" / "instances_val2017.json").unlink(), "instances_val2017.json is missing"),
        (lambda f: (f / "annotations" / "instances_val2017.json").write_text("{}"), "is not in COCO's format"),
        (lambda f: next((f / "train2017").iterdir()).unlink(), "lacks 1 of 64 images"),
    ],
)
def test_broken_folders_are_one_clear_line(shapes: Path, tmp_path: Path, change: Any, words: str):
    shutil.copytree(shapes / "kd-shapes", tmp_path / "kd-shapes")
    change(tmp_path / "kd-shapes")
    with pytest.raises(UserError, match=words):
        get_task("shapes").fingerprint(tmp_path, load_protocol("shapes-demo"))
    with pytest.raises(UserError, match=r"no data for task 'coco'.*cocodataset\.org.*--data-root"):
        get_task("coco").samples(tmp_path)


def test_plans_need_no_mmdetection(shapes: Path, tmp_path: Path):
    """Neither a plan nor other commands import it, and a run without it is one line; processes import it in turns."""
    code = f"""
import contextlib, sys
from benchmarks.common import files
from benchmarks.detection.networks import configurations
available, configurations.available = configurations.available, lambda: False
from benchmarks.cli.main import main
table = ["table4", "--preset", "demo", "--data-root", {str(shapes)!r}, "--output", {str(tmp_path)!r}]
for command in (["list"], ["show", "method", "fgd"],
                [*table, "--dry-run"]):
    try:
        sys.argv[1:] = command
        main()
    except SystemExit:
        pass
assert not [name for name in sys.modules if name.split(".")[0] in ("mmdet", "mmengine", "mmcv")]
sys.argv[1:] = table
main_status = None
try:
    main()
except SystemExit as end:
    main_status = end.code

# What mmengine writes on its first import is written by one process at a time.
turn = []
@contextlib.contextmanager
def locked(folder):
    turn.append("mmengine" in sys.modules)
    with files.locked(folder):
        yield
    turn.append("mmengine" in sys.modules)
configurations.available, configurations.locked = available, locked
configurations.prepare()
assert turn == [False, True], turn
sys.exit(main_status)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "block_kd.fpn" in result.stderr and " cells to run on" in result.stderr, result.stderr
    assert result.returncode == 2 and "extra [detection]" in result.stderr.splitlines()[-1], result.stderr


def test_every_detection_table_has_its_settings_and_titles():
    for name in ("table4", "table4-dense"):
        loaded = load_table(name)
        for row in loaded.methods:
            for pair in loaded.pairs:
                registry.settings(row.method, dict(pair_settings(row.method, f"{pair.id}:coco.mAP", "coco-1x")))
    assert pair_settings("reviewkd.fpn", "r50-mv2:coco.APs", "coco-1x") == {"beta": 2.0}


def scored(files: Any, labels: np.ndarray | None = None) -> dict[str, float]:
    """The average precisions of what finds all that the validation set has, under its labels or others."""
    configurations.prepare()
    from benchmarks.detection.training.runner import average_precision

    metric, val = average_precision(files, Path("unused")), files.val
    corners = torch.from_numpy(np.concatenate([val.boxes[:, :2], val.boxes[:, :2] + val.boxes[:, 2:]], 1))
    for image, (width, height) in enumerate(val.sizes):
        of_image = torch.from_numpy((val.image == image) & ~val.crowd)
        arrays = {
            "bboxes": corners[of_image],
            "scores": torch.ones(int(of_image.sum())),
            "labels": torch.from_numpy(val.labels if labels is None else labels)[of_image],
        }
        metric.process({}, [{"img_id": image + 1, "ori_shape": (height, width), "pred_instances": arrays}])
    return metric.evaluate(len(val.sizes))


def test_mmdetection_has_the_suites_labels(shapes: Path, tmp_path: Path):
    """It would take them from the order in which a file lists its categories, and an object's id 0 for no match."""
    (tmp_path / "kd-shapes" / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (tmp_path / "kd-shapes" / split).symlink_to(shapes / "kd-shapes" / split)
        content = json.loads((shapes / "kd-shapes" / "annotations" / f"instances_{split}.json").read_text())
        for thing in content["annotations"]:
            thing["id"] -= 1
        content = {kind: entries[::-1] for kind, entries in content.items()}
        (tmp_path / "kd-shapes" / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    plain, turned = (get_task("shapes").open(root, load_protocol("shapes-demo"), CPU) for root in (shapes, tmp_path))
    wrong = plain.val.labels.copy()
    wrong[::3] = 0
    assert scored(turned) == scored(plain) and set(scored(turned).values()) == {1.0, -1.0}
    assert scored(turned, wrong) == scored(plain, wrong) and scored(turned, wrong)["coco/bbox_mAP"] < 0.9
    figure = scored(plain, wrong)["coco/bbox_mAP"]
    assert figure != round(figure, 3), "not to a tenth of a point, as mmdetection prints it"

    from benchmarks.detection.training.data import DetectionDataset

    read = DetectionDataset(turned.val, turned.classes, test_mode=True)
    labels = [(i, one["bbox_label"]) for i in range(len(read)) for one in read.get_data_info(i)["instances"]]
    assert labels == list(zip(plain.val.image.tolist(), plain.val.labels.tolist(), strict=True))


@pytest.mark.real_data
def test_ground_truth_scores_one(real_data: RealData):
    tiny = "coco/COCO_Tiny"
    files = get_task("coco").open(real_data(tiny) / tiny, load_protocol("coco-short"), CPU)
    values = scored(files)
    assert {values[f"coco/{key}"] for key in ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_s", "bbox_mAP_l")} == {1.0}
