"""Students of archives are evaluated here: claims that hold, claims that do not, and what cannot be said here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.manifests import FACTS, Lab
from torch import Tensor

import kd_methods
from benchmarks.common.files import write_json
from benchmarks.common.weights import to_bytes
from benchmarks.config.protocol import load_protocol
from benchmarks.driver.planning.plan import Request, make
from benchmarks.driver.verify import TOLERANCE, Verified, protocol_of, report, verify
from benchmarks.store import exchange
from benchmarks.store.cell import Cell
from benchmarks.store.make_cell import Distillation, make_cell
from benchmarks.store.runs import Store
from benchmarks.tasks import get_task

Measured = tuple[dict[str, Tensor], dict[str, float]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def cells(lab: Lab) -> dict[str, Cell]:
    """A cell whose student is deployed as it is, and one that deploys more than it."""
    request = Request(table=str(lab.table), methods=("student", "simkd"), pairs=("resnet14-resnet8",), seeds=(0,))
    plan = make(request, lab.workspace)
    return {row: cell for (row, _, _), cell in plan.cells.items()}


@pytest.fixture(scope="module")
def students(cells: dict[str, Cell], lab: Lab) -> dict[str, Measured]:
    """Weights of a network that was not trained, and what it measures, by the code that training has."""
    paths = {}
    for name, cell in cells.items():
        data = get_task("digits").open(lab.folder, protocol_of(cell), torch.device("cpu"))
        torch.manual_seed(1)
        student, teacher = data.build(cell.student), data.build("resnet14") if cell.teacher else None
        method = kd_methods.build(cell.method, student, teacher, data.info, **cell.settings)
        deployed = method.deployed(method.adapt(student)).eval()
        with torch.no_grad():
            figures = data.evaluate(lambda x, deployed=deployed: {"": deployed(x)})[""]
        paths[name] = (dict(deployed.state_dict()), figures)
    return paths


def finish(output: Path, cell: Cell, measured: Measured, add: float = 0.0) -> None:
    weights, figures = measured
    claims = {name: value + add for name, value in figures.items()}
    store = Store(output)
    with store.run(cell).lock():
        run = store.create(cell)
    run.write("student.pt", to_bytes(weights))
    write_json(run / "environment.json", [FACTS])
    run.set_metrics([{"epoch": 1, "metrics": claims}])
    run.set_status("done", epoch=1, epochs=1, last=claims, best=claims, remarks=[])


def test_claims_that_hold_and_claims_that_do_not(
    lab: Lab, cells: dict[str, Cell], students: dict[str, Measured], tmp_path: Path
) -> None:
    assert students["simkd"][0].keys() != students["student"][0].keys(), "SimKD deploys another network"
    finish(tmp_path, cells["student"], students["student"])
    finish(tmp_path, cells["simkd"], students["simkd"], add=3.0)
    file = tmp_path / "sent.zip"
    keys = [cell.key for cell in cells.values()]
    exchange.export(tmp_path, file, runs=keys, also=["students"])
    said = list[str]()
    outcome = report(file, replace(lab.workspace, say=said.append))
    assert any("student/resnet8/s0" in line and line.endswith(": equal") for line in said), said
    assert any("simkd/resnet14-resnet8/s0" in line and "differs by -3.00" in line for line in said), said
    assert outcome.text == "2 of 2 students evaluated here: 1 equal, 0 within 0.1 points or 2 samples, 1 off"
    assert outcome.missing == "1 off by more than 0.1 points or 2 samples: simkd/resnet14-resnet8/s0"
    exchange.export(tmp_path, file, runs=keys)
    assert all("not in the archive" in claim.reason for claim in verify(file, lab.workspace))


def test_a_damaged_run_is_no_verified_one(
    lab: Lab, cells: dict[str, Cell], students: dict[str, Measured], tmp_path: Path
) -> None:
    finish(tmp_path, cells["student"], students["student"])
    (Store(tmp_path).run(cells["student"]) / "student.pt").write_bytes(b"half")
    outcome = report(tmp_path, replace(lab.workspace, say=lambda line: None))
    assert outcome.missing == "1 not evaluated"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
def test_a_protocol_of_photographs_is_known_from_its_identity(interpolation: str) -> None:
    recipe = load_protocol("imagenet-deit")
    assert recipe.crops
    crops = recipe.crops.model_copy(update={"interpolation": interpolation, "test_interpolation": "bicubic"})
    recipe = recipe.model_copy(update={"crops": crops})
    known = protocol_of(make_cell(recipe, "data", "resnet8x4", Distillation("student")))
    assert known.identity() == recipe.identity() and known.crops == crops


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "0" * 64}, "the data here is other data"),
        ({"versions": {"network:resnet8": 7, "task:digits": 1}}, "network:resnet8 is 1, there 7"),
        ({"plugins": {"method:mine": "00ff"}}, "method:mine is missing, there 00ff"),
        ({"method": "absent"}, "unknown method"),
        (
            {"protocol": {"name": "p", "version": 1, "epochs": 1, "batch_size": 8, "schedule": "mine"}},
            "schedule 'mine'",
        ),
        ({"task": "folder:/nowhere"}, "unknown task"),
        ({"student": "resnet14", "versions": {"network:resnet14": 1, "task:digits": 1}}, "Missing key(s)"),
    ],
)
def test_what_cannot_be_evaluated_here_says_why(
    lab: Lab, cells: dict[str, Cell], students: dict[str, Measured], tmp_path: Path, changes: Any, words: str
) -> None:
    finish(tmp_path, replace(cells["student"], **changes), students["student"])
    (claim,) = verify(tmp_path, replace(lab.workspace, say=lambda line: None))
    assert words in claim.reason and not claim.holds and "cannot be evaluated here" in claim.line()


def test_a_protocol_is_known_from_a_cell(cells: dict[str, Cell]) -> None:
    for cell in cells.values():
        protocol = protocol_of(cell)
        assert protocol.identity() == cell.protocol and protocol.lr(cell.student) == cell.lr


def test_rounding_of_another_machine_is_no_other_result() -> None:
    near, far = ({"top1": 70.0 + step * TOLERANCE} for step in (0.9, -1.1))
    assert (
        Verified("a", {"top1": 70.0}, near).holds and "differs by +0.09" in Verified("a", {"top1": 70.0}, near).line()
    )
    assert not Verified("a", {"top1": 70.0}, far).holds
    of_few = {"top1": 70.0 + 100 * 2 / 360}, "", 360
    assert Verified("a", {"top1": 70.0}, *of_few).holds, "two images of 360"
    assert not Verified("a", {"top1": 70.0 - 100 / 360}, *of_few).holds
