"""A run of detection opens in mmdetection: `init_detector`, and the same AP from mmengine's test runner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.detection import CPU, job_of, needs_mmdetection, train

from benchmarks.common.weights import load_weights
from benchmarks.common.workspace import Workspace
from benchmarks.detection.tasks.coco import METRICS
from benchmarks.driver.convert import convert
from kd_methods.errors import UserError

needs_mmdetection()


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with one run of a few iterations, long enough to detect something; the run's folder written for mmdet."""
    from helpers.detection import PROTOCOL

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(PROTOCOL.replace("iterations: 3", "iterations: 15"))
    job = job_of(folder, shapes, {"milestones": ()})
    store = train(job, folder / "out")
    run = store.run(job.cell).path
    place = Workspace(CPU, shapes, output=folder / "out")
    assert convert(run.name, "mmdet", folder / "mmdet", place) == [
        "README.md", "annotations.json", "config.py", "weights.pth"
    ]  # fmt: skip
    return run, folder / "mmdet"


def test_the_detector_opens_with_its_weights_and_classes(trained: tuple[Path, Path], shapes: Path) -> None:
    from mmdet.apis import inference_detector, init_detector

    run, folder = trained
    model = init_detector(str(folder / "config.py"), str(folder / "weights.pth"), device="cpu")
    weights = load_weights(run / "student.pt")
    ours = model.state_dict()
    assert ours.keys() == weights.keys() and all(torch.equal(ours[key], value) for key, value in weights.items())
    assert list(model.dataset_meta["classes"]) == ["disc", "square", "triangle"]
    predicted = inference_detector(model, str(next((shapes / "kd-shapes" / "val2017").glob("*.png"))))
    assert predicted.pred_instances.bboxes.shape[1] == 4


def test_mmengine_s_runner_measures_the_run_s_ap(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmdet.evaluation.metrics import coco_metric
    from mmengine.config import Config
    from mmengine.runner import Runner

    # In a process that has not measured a run yet, mmdetection rounds to a tenth of a point.
    monkeypatch.setitem(vars(coco_metric), "round", lambda value, digits: value)
    run, folder = trained
    config = Config.fromfile(folder / "config.py")
    config.work_dir, config.load_from = str(tmp_path), str(folder / "weights.pth")
    config.test_dataloader.num_workers = 0
    config.test_dataloader.persistent_workers = False
    config.experiment_name = tmp_path.name
    measured = Runner.from_cfg(config).test()
    last = json.loads((run / "status.json").read_text())["last"]
    assert last["AP50"] > 0, "nothing is detected: the comparison says nothing"
    assert {name: round(100 * measured[f"coco/{METRICS[name]}"], 4) for name in last} == last


def test_other_data_are_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:

    from benchmarks.detection.tasks import shapes

    run, _ = trained
    shapes.make(tmp_path / "kd-shapes")
    (tmp_path / "kd-shapes" / "val2017" / "0000.png").write_bytes(b"x")
    with pytest.raises(UserError, match="other data than the run's"):
        convert(run.name, "mmdet", tmp_path / "mmdet", Workspace(CPU, tmp_path, output=run.parents[1]))


@pytest.mark.slow
def test_mmdetection_s_own_script_measures_the_run_s_ap(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """As docs/detection.md calls it."""
    import mmdet

    run, folder = trained
    script = Path(mmdet.__file__).parent / ".mim" / "tools" / "test.py"
    text = (Path(__file__).parents[2] / "docs" / "detection.md").read_text()
    (code,) = [line for line in text.splitlines() if "runpy" in line]
    code = code.partition('"')[2].partition('"')[0]
    command = [sys.executable, "-c", code, str(script), str(folder / "config.py"), str(folder / "weights.pth")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command += ["--work-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run.parents[2], env=environment)
    last = json.loads((run / "status.json").read_text())["last"]
    assert f"coco/bbox_mAP_50: {last['AP50'] / 100:.4f}" in done.stdout + done.stderr, done.stderr[-2000:]
