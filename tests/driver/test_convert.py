"""What a run leaves opens in timm and in transformers, with equal logits, and says what it is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from helpers import stores
from helpers.manifests import FACTS
from helpers.stores import TABLE_FOLDER, place, shown
from PIL import Image
from safetensors.torch import load_file

from benchmarks.cli import completion
from benchmarks.cli.main import cli
from benchmarks.common.files import write_json
from benchmarks.common.weights import to_bytes
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.driver import engines
from benchmarks.driver.convert import FORMS, convert, convert_all
from benchmarks.networks import build_network
from benchmarks.store import manifest
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.make_cell import Distillation, make_cell
from benchmarks.store.runs import Store
from benchmarks.tasks import TASK_SOURCES, TaskSource, get_task
from benchmarks.tasks.augmentation.transforms import clean
from benchmarks.tasks.data_sets import digits
from benchmarks.tasks.images import ImageTask
from kd_methods.errors import DiskError, UserError

TEACHER = TeacherRef("resnet14", (0.5,) * 3, (0.25,) * 3, weights="f" * 64)


def finished(output: Path, protocol: str, student: str, method: str, module: torch.nn.Module, task: str = "") -> Cell:
    """A run that is done, with the weights of a module; ``task``: another one than the protocol's."""
    teacher, recipe = None if method == "student" else TEACHER, load_protocol(protocol)
    cell = make_cell(recipe.on_task(task), "data", student, Distillation(method, teacher))
    store, figures = Store(output), {"top1": 90.0}
    with store.run(cell).lock():
        run = store.create(cell)
    run.write("student.pt", to_bytes(module.state_dict()))
    write_json(run / "environment.json", [FACTS])
    run.set_metrics([{"epoch": 1, "metrics": figures}])
    run.set_status("done", epoch=1, epochs=1, last=figures, best=figures, remarks=[])
    return cell


def test_a_student_of_images_opens_in_timm(tmp_path: Path) -> None:
    module, x = build_network("resnet8", 10, (3, 8, 8)).module.eval(), torch.randn(2, 3, 8, 8)
    cell = finished(tmp_path, "digits-demo", "resnet8", "kd", module)
    folder = tmp_path / "timm"
    assert convert(cell.key[:12], "timm", folder, place(tmp_path)) == ["README.md", "config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(model(x), module(x))
    assert model.num_classes == 10 and tuple(model.pretrained_cfg["mean"]) == load_protocol("digits-demo").mean
    card = (folder / "README.md").read_text()
    assert "library_name: timm" in card and "| top1 | 90.00 | 90.00 |" in card and cell.key in card
    assert "hinton2015" in card and "resnet14" in card and "digits-demo" in card


@pytest.mark.parametrize("protocol", ["imagenet-100", "imagenet-short", "imagenet-deit"])
def test_timm_sees_a_photograph_as_the_evaluation_here_does(tmp_path: Path, protocol: str) -> None:
    module = timm.create_model("resnet10t", num_classes=1000)
    cell = finished(tmp_path, protocol, "timm:resnet10t", "student", module)
    convert(cell.key[:12], "timm", tmp_path / "timm", place(tmp_path))
    opened = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    theirs = timm.data.create_transform(**timm.data.resolve_data_config({}, model=opened))
    recipe = load_protocol(protocol)
    assert recipe.crops
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    assert torch.allclose(theirs(photograph), (clean(recipe.crops)(photograph) / 255 - mean) / std, atol=1e-5)


def test_a_student_of_texts_opens_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    task = get_task("grammar")
    tokenizer = task.tokenizer(tmp_path, load_protocol("grammar-demo"))
    module = build_network("bert_l2_h32", task.num_classes, (3, 8), len(tokenizer)).module.eval()
    cell = finished(tmp_path, "grammar-demo", "bert_l2_h32", "student", module)
    folder = tmp_path / "hf"
    convert(cell.key[:12], "hf", folder, place(tmp_path))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    read = transformers.AutoTokenizer.from_pretrained(folder)
    text = " ".join(task.vocabulary[:4])
    encoded = read(text, return_tensors="pt")
    assert encoded["input_ids"].tolist() == tokenizer(text, return_tensors="pt")["input_ids"].tolist()
    with torch.no_grad():
        assert torch.allclose(model(**encoded).logits, module(**encoded).logits, atol=1e-6)
    (answer,) = transformers.pipeline("text-classification", model=str(folder))(text)
    assert answer["label"] in task.labels


@pytest.mark.parametrize("source", ["folder", "levels"])
def test_a_run_of_a_source_s_task_does_not_say_which(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = tmp_path / "images"
    (rest / "train" / "one").mkdir(parents=True)
    task = ImageTask(f"levels:{rest}", 10, digits.load)
    monkeypatch.setitem(TASK_SOURCES._registered, "levels", TaskSource("levels", lambda _: task))
    module = build_network("resnet8", 10, (3, 8, 8)).module
    cell = finished(tmp_path, "digits-demo", "resnet8", "student", module, f"{source}:{rest}")
    with pytest.raises(UserError, match=f"which task of '{source}:' it has is not in the run"):
        convert(cell.key[:12], "timm", tmp_path / "timm", place(tmp_path))
    assert "model.safetensors" in convert(cell.key[:12], "safetensors", tmp_path / "plain", place(tmp_path))


def test_weights_alone_and_what_cannot_be_converted(tmp_path: Path) -> None:
    module = build_network("resnet8", 10, (3, 8, 8)).module
    cell = finished(tmp_path, "digits-demo", "resnet8", "student", module)
    convert(cell.key[:12], "safetensors", tmp_path / "plain", place(tmp_path))
    assert load_file(tmp_path / "plain" / "model.safetensors").keys() == module.state_dict().keys()
    more = finished(tmp_path, "digits-demo", "resnet8", "simkd", torch.nn.Linear(2, 2))
    for key, form, words in (
        (cell.key, "hf", "hf for texts"),
        (cell.key, "mmdet", "mmdet for detection"),
        (more.key, "timm", "'simkd' deploys more than the plain resnet8"),
        ("nothing", "timm", "no run 'nothing'"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            convert(key[:12], form, tmp_path / "refused", place(tmp_path))
    assert not list((tmp_path / "refused").iterdir()), "nothing is left of what was refused"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DiskError, match=r"cannot write \S*file: File exists; choose another folder"):
        convert(cell.key[:12], "safetensors", tmp_path / "file", place(tmp_path))


def test_a_student_of_images_runs_in_onnx(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    module, x = build_network("resnet8", 10, (3, 16, 16)).module.eval(), torch.randn(3, 3, 16, 16)
    cell = finished(tmp_path, "digits-demo", "resnet8", "student", module)
    convert(cell.key[:12], "onnx", tmp_path / "onnx", place(tmp_path))
    session = runtime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": x.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(logits), module(x), atol=1e-5)


def test_every_finished_run_of_a_table_is_written_under_its_name(tmp_path: Path) -> None:
    module = build_network("resnet8", 10, (3, 8, 8)).module
    cells = [finished(tmp_path, "digits-demo", "resnet8", method, module) for method in ("student", "kd")]
    cells.append(finished(tmp_path, "digits-demo", "resnet8", "simkd", torch.nn.Linear(2, 2)))
    manifest.save(tmp_path, TABLE_FOLDER, shown(*cells, replace(cells[1], seed=1)))
    call = CliRunner().invoke(cli, ["convert", "--all", TABLE_FOLDER, "--to", "timm", "--output", str(tmp_path)])
    assert call.exit_code == 1 and f"converted/timm/{TABLE_FOLDER}: 2 networks of 4 cells" in call.output
    assert "simkd/a-b/s0: method 'simkd' deploys more" in call.output
    assert "not complete: 1 not for --to timm: simkd/a-b/s0; 1 cell without a result" in call.output
    folder = tmp_path / "converted" / "timm" / TABLE_FOLDER
    assert {path.parent.relative_to(folder).as_posix() for path in folder.rglob("config.json")} == {
        "student/a-b/s0", "kd/a-b/s0"
    }  # fmt: skip
    model = timm.create_model(f"local-dir:{folder / 'kd/a-b/s0'}", pretrained=True)
    assert model.state_dict().keys() == module.state_dict().keys()
    call = CliRunner().invoke(
        cli, ["convert", f"{TABLE_FOLDER}/kd/a-b/s0", "--to", "safetensors", "--output", str(tmp_path)]
    )
    assert call.exit_code == 0 and "README.md, model.safetensors" in call.output
    for words in (["x", "--all", TABLE_FOLDER], []):
        call = CliRunner().invoke(cli, ["convert", *words, "--to", "timm", "--output", str(tmp_path)])
        assert "convert takes a RUN, or --all TABLE" in str(call.exception)


def test_what_is_not_written_is_said_with_its_reason(tmp_path: Path) -> None:
    """A pair that a method is not for is an answer; a network that is damaged or not here does not lack a form."""
    module, store = build_network("resnet8", 10, (3, 8, 8)).module, Store(tmp_path)
    cells = [finished(tmp_path, "digits-demo", "resnet8", method, module) for method in ("student", "kd", "dkd", "rkd")]
    store.run(cells[3]).set_status("refused", message="not for this pair")
    manifest.save(tmp_path, TABLE_FOLDER, shown(*cells))
    outcome = convert_all(TABLE_FOLDER, "safetensors", tmp_path / "all", place(tmp_path))
    assert outcome.text.endswith("3 networks of 4 cells") and not outcome.missing
    (store.run(cells[0]) / "student.pt").unlink()
    (store.run(cells[1]) / "student.pt").write_bytes(b"half")
    outcome = convert_all(TABLE_FOLDER, "safetensors", tmp_path / "again", place(tmp_path))
    assert outcome.text.endswith("1 network of 4 cells")
    first, second = outcome.missing.split("; ")
    assert first == "1 damaged: kd/a-b/s0" and second.endswith("`export --students` wrote): student/a-b/s0")
    assert "without their network here" in second
    (tmp_path / "again" / "dkd" / "a-b" / "s0" / "README.md").write_text("mine")
    assert (
        "; 1 in folders with other files: dkd/a-b/s0; "
        in convert_all(TABLE_FOLDER, "safetensors", tmp_path / "again", place(tmp_path)).missing
    )
    with pytest.raises(UserError, match="came without it; `import` takes it"):
        convert(cells[0].key[:12], "safetensors", tmp_path / "one", place(tmp_path))


@pytest.mark.parametrize("name", ["README.md", "config.json", "notes.txt"])
def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, name: str) -> None:
    module = build_network("resnet8", 10, (3, 8, 8)).module
    cell, other = (finished(tmp_path, "digits-demo", "resnet8", method, module) for method in ("student", "kd"))
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(UserError, match=re.escape(f"({name}); choose another --folder")):
        convert(cell.key[:12], "timm", folder, place(tmp_path))
    assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == "mine"
    (folder / name).unlink()
    written = convert(cell.key[:12], "timm", folder, place(tmp_path))
    (folder / "notes.txt").write_text("mine")
    assert convert(cell.key[:12], "timm", folder, place(tmp_path)) == written, "again, and only what was written"
    with pytest.raises(UserError, match="files that are not of this run"):
        convert(other.key[:12], "timm", folder, place(tmp_path))


def test_what_concerns_all_networks_of_a_table_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "existing", lambda *_: pytest.fail("nothing is looked for"))
    with pytest.raises(UserError, match="unknown form 'tim'; did you mean timm"):
        convert_all("mine", "tim", tmp_path, place(tmp_path))


def test_a_full_disk_ends_the_conversion_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.table(tmp_path, "student", "kd")

    def full(*_: Any) -> None:
        raise DiskError("no room")

    monkeypatch.setattr("benchmarks.driver.convert.convert", full)
    with pytest.raises(DiskError, match="no room"):
        convert_all(TABLE_FOLDER, "safetensors", tmp_path / "all", place(tmp_path))


def test_the_command_offers_every_form() -> None:
    forms = {form for engine in engines.ENGINES.mapping().values() for form in engine.forms}
    assert set(completion.FORMS) == {*FORMS, *forms} and "mmdet" in forms


def test_a_form_is_what_an_engine_brings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a plugin, too, whose name no list of the command line can know."""
    module = build_network("resnet8", 10, (3, 8, 8)).module
    cell = finished(tmp_path, "digits-demo", "resnet8", "student", module)
    with pytest.raises(UserError, match="unknown form 'coreml'; known: hf, mmdet, onnx, safetensors, timm"):
        convert(cell.key[:12], "coreml", tmp_path / "mine", place(tmp_path))

    def write(cell: Any, weights: Any, folder: Path, workspace: Workspace) -> None:
        (folder / "model.mlmodel").write_text(cell.student)

    local = engines.of(get_task("digits"))
    monkeypatch.setitem(engines.ENGINES._registered, local.name, replace(local, forms={"coreml": write}))
    call = CliRunner().invoke(cli, ["convert", cell.key[:12], "--to", "coreml", "--output", str(tmp_path)])
    assert call.exit_code == 0 and "README.md, model.mlmodel" in call.output, call.exception
