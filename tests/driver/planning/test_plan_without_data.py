"""A plan needs no data: what is known of the official ones stands in for them, and never gives a wrong key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.config.table_spec import load_table
from benchmarks.cost.cards import SHARE, speed
from benchmarks.driver.execution.crew import Crew
from benchmarks.driver.execution.jobs import Shard
from benchmarks.driver.planning.estimate import Estimate
from benchmarks.driver.planning.plan import Request, make
from benchmarks.driver.reproduce import Options, reproduce
from benchmarks.store.runs import Store
from benchmarks.tasks import NoData, get_task
from benchmarks.tasks.data_sets.cifar import CIFAR100
from benchmarks.tasks.stated import Stated, at_hand
from kd_methods.errors import UserError

PAIR = "resnet14-resnet8"


def workspace(tmp_path: Path, lines: list[str]) -> Workspace:
    return Workspace(torch.device("cpu"), tmp_path, tmp_path, tmp_path / "results", say=lines.append)


def request(table: str = "table1", **asked: tuple[str, ...]) -> Request:
    return Request(table, pairs=(PAIR,), seeds=(0, 1), **asked)  # type: ignore[arg-type]


def test_cells_arithmetic_and_hours_without_the_data_and_what_the_store_has(tmp_path: Path) -> None:
    lines: list[str] = []
    where = workspace(tmp_path, lines)
    asked = request(methods=("student", "kd"))
    plan = make(asked, where, stated=True)
    stored = plan.cells["student", PAIR, 1]
    assert stored.data == CIFAR100 and plan.protocol.epochs == 240
    Store(where.output).create(stored, lines.append).set_status("done", last={"top1": 60.0}, best={"top1": 60.0})
    reproduce(asked, where, Options(dry_run=True, device_speed="1", crew=Crew(2)))
    text = "\n".join(lines)
    assert "data of cifar100 are not here: planned for the official ones, 50,000 samples for training" in text
    assert "not compared" not in text and "2 cells, 1 stored" in text and "2 cells, 0 stored" in text
    assert "4 cells to run on a device that sustains 1 TFLOP/s (as given) by 2 workers: about" in text

    todo = {cell.key: 1.0 for cell in plan.every_cell()}
    expected = Estimate(plan, todo, where, speed("1", "fp32"))
    cells = [*plan.training, *plan.cells.values()]
    operations = [expected.operations(cell) or 0.0 for cell in cells]
    # A forward pass of resnet8 has 12.6 M multiply-adds an image; a training step has three products of each.
    assert operations[1] == pytest.approx(6 * 12.6e6 * 50_000 * 240, rel=0.05)
    assert expected.seconds() == pytest.approx(sum(operations) / 1e12)
    assert (
        sum(operations[:1]) / 1e12 < (expected.seconds(99) or 0) < (expected.seconds(2) or 0) < sum(operations) / 1e12
    )


def test_a_run_says_that_data_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR100.download", lambda self: (_ for _ in ()).throw(OSError("none")))
    with pytest.raises(NoData, match="put the folder cifar-100-python there"):
        make(request(methods=("kd",)), workspace(tmp_path, []))


def test_a_dry_run_fetches_nothing_and_does_not_hide_damaged_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR100.download", lambda self: pytest.fail("a download"))
    source, fingerprint = at_hand(load_protocol("cifar100-crd240"), tmp_path, stated=True)
    assert isinstance(source, Stated) and fingerprint == CIFAR100
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(UserError, match="is damaged or incomplete"):
        at_hand(load_protocol("cifar100-crd240"), tmp_path, stated=True)


def test_data_of_which_no_fingerprint_is_known_are_not_compared_with_the_store(tmp_path: Path) -> None:
    lines: list[str] = []
    protocol = load_protocol("cifar100-crd240").on_task("cifar10")
    (tmp_path / "ten.yaml").write_text("extends: cifar100-crd240\nname: ten\nversion: 1\ntask: cifar10\n")
    (tmp_path / "t.yaml").write_text(
        f"name: t\ntitle: T\npairs: [{PAIR}]\nmethods: [student]\n"
        "presets: {paper: {protocol: ten.yaml, seeds: [0]}}\n"
    )
    source, fingerprint = at_hand(protocol, tmp_path, stated=True)
    assert isinstance(source, Stated) and fingerprint == "" and source.samples(tmp_path) == 50_000
    asked = Request(str(tmp_path / "t.yaml"))
    reproduce(asked, workspace(tmp_path, lines), Options(dry_run=True, device_speed="a100"))
    text = "\n".join(lines)
    assert "fingerprint is not known: no run is looked up" in text and "1 cell, store not compared, " in text
    assert re.search(r"estimated, not measured: 5 % of the published 19.5 TFLOP/s in fp32\): about \d+", text)


@pytest.mark.parametrize(
    ("task", "samples", "words"),
    [
        ("glue/mrpc", 3668, "FLOPs depend on the texts and are not counted"),
        ("coco", 117_266, "FLOPs of detectors are not"),
    ],
)
def test_texts_and_detectors_are_planned_and_not_counted(tmp_path: Path, task: str, samples: int, words: str) -> None:
    stated = Stated(get_task(task))
    assert stated.samples(tmp_path) == samples and not stated.counted and words in stated.line


def test_random_images_have_the_shape_that_the_protocol_crops_to(tmp_path: Path) -> None:
    from benchmarks.config.protocol import protocol_names

    name = next(name for name in protocol_names() if load_protocol(name).task == "imagenet")
    protocol = load_protocol(name).model_copy(update={"batch_size": 2})
    data = Stated(get_task("imagenet")).open(tmp_path, protocol, torch.device("cpu"))
    batch = next(data.batches(0, 1))
    assert batch.student().inputs.shape == (2, 3, 224, 224) and data.info.num_samples == 1_281_167


@pytest.mark.parametrize(
    ("text", "message"),
    [("0", "more than 0"), ("nan", "more than 0"), ("a10", "did you mean a100"), ("v100", "no tf32")],
)
def test_speeds_that_are_none(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        speed(text, "tf32")


def test_a_speed_by_a_card_follows_the_precision() -> None:
    assert speed("A100", "tf32").operations == pytest.approx(SHARE * 156e12)
    assert speed("2.5", "fp32").operations == 2.5e12


@pytest.mark.parametrize("table", ["feature-only-claims", "letkd-claims"])
def test_claims_in_prose_are_tables_that_can_be_planned(tmp_path: Path, table: str) -> None:
    """Each says where the claim stands; the rows that it is about get cells, in a fifth of the epochs where asked."""
    spec = load_table(table)
    for name in spec.presets.keys() - {"fine-tuned"}:  # which needs weights of ImageNet
        plan = make(Request(table, name), workspace(tmp_path, []), stated=True)
        assert len(plan.cells) == len(plan.rows) * len(plan.pairs) * len(plan.seeds)
        claims = [note.startswith("tests a claim in prose (") for note in plan.notes]
        assert name == "demo" or (claims and all(claims)), name
    if table == "feature-only-claims":
        full, fifth = (load_protocol(spec.presets[name].protocol) for name in ("paper", "fifth"))
        assert (fifth.epochs, fifth.recipe) == (
            full.epochs / 5,
            full.recipe,
        ) and "10 epochs instead of 50" in fifth.deviations
        assert fifth.teachers_from == full.name, "the teacher is the same one"


def test_what_is_not_counted_takes_no_known_time(tmp_path: Path) -> None:
    """Detection's steps are counted by no engine: a plan says so, and not that they take no time."""
    lines: list[str] = []
    where = Workspace(torch.device("cpu"), tmp_path, tmp_path, tmp_path, say=lines.append)
    reproduce(Request("table4", methods=("student",), seeds=(0,)), where, Options(dry_run=True))
    assert lines[-1].endswith("their time is not estimated"), lines[-1]


def test_a_shard_tells_of_its_own_cells(tmp_path: Path) -> None:
    lines: list[str] = []
    where = Workspace(torch.device("cpu"), tmp_path, tmp_path, tmp_path, say=lines.append)
    request = Request("table2", pairs=("vgg13-MobileNetV2",), methods=("student", "kd"), seeds=(0, 1))
    reproduce(request, where, Options(dry_run=True, device_speed="1", shard=Shard(1, 4)))
    text = "\n".join(lines)
    assert "1 cell, 0 stored, " in text and lines[-1].startswith("1 cell to run on "), text
    assert " 1 stored" not in text and "2 cells" not in text, (
        "nothing is in the store, and of two groups one is its own"
    )
