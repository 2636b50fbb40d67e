"""What a run leaves, as the files that other libraries open: timm, transformers, mmdetection, ONNX, safetensors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd_methods import registry
from kd_methods.errors import Damaged, DiskError, UserError, unknown

from ..common.console import Outcome, counted
from ..common.files import PARTIAL, filled, read_text, write_json, write_text
from ..common.weights import load_weights
from ..common.workspace import Workspace
from ..config.recipe import Crops
from ..networks import build_network, modality_of
from ..report.citations import bibtex, cited
from ..store import documents, manifest, names
from ..store.cell import Cell
from ..store.runs import Store
from ..store.whole_runs import STUDENT, finished
from ..tasks import TASK_SOURCES, get_task
from ..tasks.text import TextTask
from . import engines
from .verify import protocol_of

WEIGHTS, CARD = "model.safetensors", "README.md"

_FOR = "--to timm and onnx are for images, hf for texts, mmdet for detection, safetensors for all"


def convert(run: str, form: str, folder: Path | str, workspace: Workspace) -> list[str]:
    """Write the deployed network of a finished run, and a card, into a folder; returns the names of its files.

    Args:
        run: how the name of its folder begins, or its readable name (:mod:`benchmarks.store.names`).
        form: a name of :data:`FORMS`, or one that the engine of the run's task has.
        folder: is made where it is not there.
        workspace: whose output has the run.

    Raises:
        UserError: there is no such form or run, it has no network, or that network cannot be had in this form.
        DiskError: the folder cannot be written; nothing in it has changed then.
    """
    _check(form)
    folder = Path(folder)
    source, label, status = finished(workspace.output, run)
    _check_folder(folder, source.key)
    document = documents.read(source / "cell.json", documents.WholeIdentity)
    cell, weights = Cell.of(document["cell"]), load_weights(source / STUDENT)
    if form != "safetensors" and cell.task in TASK_SOURCES.mapping():
        raise UserError(f"run {run}: which task of '{cell.task}:' it has is not in the run; use --to safetensors")
    write = FORMS.get(form) or engines.of(get_task(cell.task)).forms.get(form)
    if not write:
        raise UserError(f"run {run} is of task {cell.task}: {_FOR}")
    with filled(folder) as new:
        write(cell, weights, new, workspace)
        write_text(new / CARD, card(cell, label, status, form))
        written = sorted(path.name for path in new.iterdir())
    return written


class Occupied(UserError):
    """A folder has files that are not to be written over."""


def _check_folder(folder: Path, key: str) -> None:
    """Raise Occupied where a folder has files and they are not what the same run was converted to before."""
    there = [path for path in folder.iterdir() if not path.name.endswith(PARTIAL)] if folder.is_dir() else []
    if not there:
        return
    with contextlib.suppress(UserError):
        if f"Cell {key}." in read_text(folder / CARD):
            return
    raise Occupied(f"{folder} has files that are not of this run ({min(there).name}); choose another --folder")


def convert_all(table_folder: str, form: str, folder: Path, workspace: Workspace) -> Outcome:
    """As :func:`convert`, for every finished run of a table, each into a folder by its row, pair and seed.

    Args:
        table_folder: its name in the store.
        form, folder, workspace: as there.

    Returns:
        How many were written, and which could not be, and why.

    Raises:
        UserError: there is no such form, or nothing was ever planned under that name.
        DiskError: a folder cannot be written.
    """
    _check(form)
    shown, store = manifest.existing(workspace.output, table_folder), Store(workspace.output)
    runs = {name: key for name, key in names.of_table(shown).items() if not name.startswith(names.TEACHER)}
    states = {key: facts.status["state"] for key, facts in store.facts(runs.values()).items()}
    done = {name: key for name, key in runs.items() if states[key] == "done"}
    reasons: dict[str, list[str]] = {f"not for --to {form}": [], "damaged": [], _OCCUPIED: [], _WITHOUT: []}
    misfits, damaged, occupied, without = reasons.values()
    for name, key in done.items():
        if not (store.run(key) / STUDENT).is_file():
            without.append(name)
            continue
        try:
            convert(key, form, folder / name, workspace)
        except DiskError:
            raise
        except UserError as error:
            workspace.say(f"{name}: {error}")
            kind = damaged if isinstance(error, Damaged) else occupied if isinstance(error, Occupied) else misfits
            kind.append(name)
    left = sum(map(len, reasons.values()))
    text = f"{folder}: {counted(len(done) - left, 'network')} of {counted(len(runs), 'cell')}"
    missing = [f"{len(places)} {reason}: {', '.join(places)}" for reason, places in reasons.items() if places]
    not_done = sum(state not in ("done", "refused") for state in (states[key] for key in runs.values()))
    missing += [f"{counted(not_done, 'cell')} without a result"] if not_done else []
    return Outcome(text, "; ".join(missing))


_OCCUPIED = "in folders with other files"
_WITHOUT = "without their network here (`import` takes it from an archive that `export --students` wrote)"


def _check(form: str) -> None:
    """Raise UserError where nothing writes that form."""
    every = {*FORMS, *(form for engine in engines.ENGINES.mapping().values() for form in engine.forms)}
    if form not in every:
        raise unknown("form", form, every)


def _safetensors(cell: Cell, weights: Mapping[str, Tensor], folder: Path, workspace: Workspace) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({key: value.contiguous().clone() for key, value in weights.items()}, folder / WEIGHTS)
    except SafetensorError as error:
        raise DiskError(f"cannot write {WEIGHTS}: {error}; choose another folder or free space") from None


def loaded(cell: Cell, module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The plain network of a cell with its weights.

    Raises:
        UserError: what the cell deploys is more than that.
    """
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError:
        raise UserError(
            f"method '{cell.method}' deploys more than the plain {cell.student}, which no other library builds; "
            "--to safetensors has its weights"
        ) from None
    return module


def _timm(cell: Cell, weights: Mapping[str, Tensor], folder: Path, workspace: Workspace) -> None:
    import timm

    from ..networks.libraries import timm_entry  # noqa: F401  # enters the suite's networks

    library, _, rest = cell.student.rpartition(":")
    name = rest if library == "timm" else f"kd_{cell.student}".replace(".", "_")
    if library not in ("", "timm") or not timm.is_model(name) or modality_of(cell.student) != "images":
        raise UserError(f"network '{cell.student}' is none of timm's: {_FOR}")
    task: Any = get_task(cell.task)
    module: Any = timm.create_model(name, num_classes=task.num_classes)
    loaded(cell, module, weights)
    _safetensors(cell, weights, folder, workspace)
    trained = {"input_size": _shape(cell), "num_classes": task.num_classes, **_evaluated(protocol_of(cell).crops)}
    trained |= {key: list(getattr(protocol_of(cell), key)) for key in ("mean", "std")}
    facts = {key: module.pretrained_cfg.get(key) for key in ("first_conv", "classifier", "interpolation")}
    config = {
        "architecture": name,
        "num_classes": task.num_classes,
        "num_features": module.num_features,
        "pretrained_cfg": {**facts, **trained},
    }
    write_json(folder / "config.json", config)


def _shape(cell: Cell) -> tuple[int, int, int]:
    """Of an image as the network sees it."""
    side = protocol_of(cell).side(cast(Any, get_task(cell.task)).size)
    return (3, side, side)


def _evaluated(crops: Crops | None) -> dict[str, Any]:
    """How timm's transforms make of an image what the evaluation here makes of it."""
    if not crops:
        return {"crop_pct": 1.0}
    share = crops.size / crops.test_resize
    if int(crops.size / share) < crops.test_resize:  # timm rounds this down
        share = math.nextafter(share, 0.0)
    return {"crop_pct": share, "crop_mode": "center", "interpolation": crops.test_interpolation or crops.interpolation}


def _hf(cell: Cell, weights: Mapping[str, Tensor], folder: Path, workspace: Workspace) -> None:
    task = get_task(cell.task)
    if not isinstance(task, TextTask):
        raise UserError(f"task {cell.task} is none of texts: {_FOR}")
    tokenizer = task.tokenizer(workspace.data_root, protocol_of(cell))
    network = build_network(cell.student, task.num_classes, (3, 8), len(tokenizer))
    model: Any = loaded(cell, network.module, weights)
    if task.labels:
        model.config.id2label = dict(enumerate(task.labels))
        model.config.label2id = {label: i for i, label in enumerate(task.labels)}
    else:
        model.config.problem_type = "regression"
    model.save_pretrained(folder)
    tokenizer.model_max_length = cell.protocol["max_length"]
    tokenizer.save_pretrained(folder)


def _onnx(cell: Cell, weights: Mapping[str, Tensor], folder: Path, workspace: Workspace) -> None:
    if modality_of(cell.student) != "images":
        raise UserError(f"network '{cell.student}' reads no images: {_FOR}")
    try:
        import onnxscript  # noqa: F401  # what torch.onnx stands on
    except ImportError:
        raise UserError(
            "--to onnx needs the extra [onnx]; `./reproduce.sh convert` installs it from requirements/onnx.txt"
        ) from None
    task, shape = cast(Any, get_task(cell.task)), _shape(cell)
    module = loaded(cell, build_network(cell.student, task.num_classes, shape).plain(), weights).eval()
    torch.onnx.export(
        module,
        (torch.zeros(2, *shape),),
        folder / "model.onnx",
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )


FORMS: Mapping[str, Callable[[Cell, Mapping[str, Tensor], Path, Workspace], None]] = {
    "timm": _timm,
    "hf": _hf,
    "onnx": _onnx,
    "safetensors": _safetensors,
}
"""timm: ``timm.create_model("local-dir:FOLDER", pretrained=True)``; hf: ``from_pretrained(FOLDER)``, ``pipeline``.

Engines bring others: ``mmdet``, whose folder ``init_detector`` and mmengine's Runner open.
"""


def card(cell: Cell, label: str, status: Mapping[str, Any], form: str) -> str:
    """A model card: what was trained how, what it measures, what to cite."""
    teacher = cell.teacher.network if cell.teacher else "none"
    library = {"timm": "timm", "hf": "transformers"}.get(form)
    head = ["---", *([f"library_name: {library}"] if library else []), "tags: [knowledge-distillation]", "---"]
    metrics = [f"| {name} | {value:.2f} | {status['best'][name]:.2f} |" for name, value in status["last"].items()]
    method = registry.card(cell.method)
    rows = [(cell.method, cell.protocol.get("optimizer", {}).get("name", ""))]
    networks = [cell.student, *([cell.teacher.network] if cell.teacher else [])]
    return "\n".join(
        [
            *head,
            f"# {cell.student}, {method.title}, {cell.task}",
            "",
            f"{label}. Teacher: {teacher}. Protocol {cell.protocol.get('name')}, {cell.protocol.get('epochs')} epochs, "
            f"seed {cell.seed}. Cell {cell.key}.",
            "",
            "| metric | last epoch | best epoch |",
            "| --- | ---: | ---: |",
            *metrics,
            "",
            f"Loss: {method.formula}",
            "",
            "Settings: " + (", ".join(f"{key} {value}" for key, value in cell.settings.items()) or "none"),
            "",
            "```bibtex",
            bibtex(cited(rows, [cell.task], networks)).strip(),
            "```",
            "",
        ]
    )
