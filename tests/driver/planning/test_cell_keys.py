"""What makes another cell of the same place in a table: data, teacher, protocol, method, plugins."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.plans import METHOD, TABLE, entry, keys, plan, teacher_file

from benchmarks import tasks
from benchmarks.common import plugins
from benchmarks.config.protocol import load_protocol
from benchmarks.tasks.data_sets import digits
from benchmarks.tasks.images import Split
from benchmarks.teachers.zoo import Zoo
from kd_methods import registry


def test_holdout_makes_other_cells(table: str, zoo: Zoo) -> None:
    whole, split = plan(table, zoo), plan(table, zoo, holdout=200)
    assert split.protocol.holdout == 200 and split.table_folder == "mine-paper-holdout200"
    assert not set(keys(whole).values()) & set(keys(split).values())
    assert keys(plan(table, zoo, holdout=0)) == keys(whole)


def test_a_plugins_digest_enters_only_the_cells_that_use_it(table: str, zoo: Zoo) -> None:
    plain, used = plan(table, zoo), plan(table, zoo, plugins={"method:kd": "abc", "method:other": "def"})
    for place, cell in used.cells.items():
        assert cell.plugins == ({"method:kd": "abc"} if place[0] in ("kd", "kd-2") else {})
        assert (cell.key == plain.cells[place].key) == (place[0] not in ("kd", "kd-2"))

    network = plan(table, zoo, plugins={"network:wrn_16_1": "abc"})
    assert network.cells["student", "wrn_16_1-resnet8", 0].plugins == {}, "the teacher's file is not the student's"
    assert network.cells["kd", "wrn_16_1-resnet8", 0].plugins == {"network:wrn_16_1": "abc"}
    assert network.cells["student", "wrn_16_1-wrn_16_1", 0].plugins == {"network:wrn_16_1": "abc"}
    assert network.cells["kd", "resnet14-resnet8", 0].key == plain.cells["kd", "resnet14-resnet8", 0].key
    for name in ("task:digits", "task source:digits"):  # what stands before the colon of a source's tasks
        assert all(cell.plugins for cell in plan(table, zoo, plugins={name: "abc"}).cells.values())


def test_a_plugin_is_named_by_what_it_registers(tmp_path: Path, clean_registry: None, table: str, zoo: Zoo) -> None:
    file = tmp_path / "my method.py"
    file.write_text(METHOD)
    loaded = plugins.load([file])
    assert loaded == {"method:plan_mine": hashlib.sha256(METHOD.encode()).hexdigest()}
    made = plan(table, zoo, methods=("plan_mine", "kd"), plugins=loaded)
    assert made.cells["plan_mine", "resnet14-resnet8", 0].plugins == loaded
    assert made.cells["kd", "resnet14-resnet8", 0].plugins == {}


def test_a_replaced_teacher_file_makes_other_cells(tmp_path: Path, table: str, zoo: Zoo) -> None:
    zoo.add(entry("resnet14", "resnet14"), teacher_file(tmp_path / "f", "resnet14", 0))
    first = plan(table, zoo)
    assert {cell.student for cell in first.training} == {"wrn_16_1"}
    ref = first.teachers["resnet14", "digits"]
    assert ref.entry == "resnet14" and len(ref.weights) == 64 and not ref.cell

    zoo.add(entry("resnet14", "resnet14"), teacher_file(tmp_path / "f", "resnet14", 0))
    assert keys(plan(table, zoo)) == keys(first), "the same weights are the same teacher"

    zoo.add(entry("resnet14", "resnet14"), teacher_file(tmp_path / "f", "resnet14", 1))
    second = plan(table, zoo)
    changed = {place for place in first.cells if keys(first)[place] != keys(second)[place]}
    assert changed == {place for place in first.cells if place[0] != "student" and place[1] == "resnet14-resnet8"}


def test_a_file_changed_behind_the_entry_is_noticed(tmp_path: Path, table: str, zoo: Zoo) -> None:
    added = zoo.add(entry("resnet14", "resnet14"), teacher_file(tmp_path / "f", "resnet14", 0))
    first = plan(table, zoo).cells["kd", "resnet14-resnet8", 0].key
    zoo.path(added).write_bytes(teacher_file(tmp_path / "f", "resnet14", 1).read_bytes())
    assert plan(table, zoo).cells["kd", "resnet14-resnet8", 0].key != first


def test_a_teachers_normalisation_is_part_of_the_cell(tmp_path: Path, table: str, zoo: Zoo) -> None:
    file = teacher_file(tmp_path / "f", "resnet14", 0)
    zoo.add(entry("resnet14", "resnet14"), file)
    first = plan(table, zoo).cells["kd", "resnet14-resnet8", 0].key
    zoo.add(entry("resnet14", "resnet14").model_copy(update={"mean": (0.5, 0.5, 0.5)}), file)
    assert plan(table, zoo).cells["kd", "resnet14-resnet8", 0].key != first


def test_other_data_makes_other_cells(monkeypatch: pytest.MonkeyPatch, table: str, zoo: Zoo) -> None:
    first = keys(plan(table, zoo))

    def one_pixel_less(root: Path, download: bool) -> tuple[Split, Split]:
        train, test = digits.load(root, download)
        images = train.images.clone()
        images[0, 0, 0, 0] ^= 1
        return Split(images, train.labels), test

    monkeypatch.setitem(tasks.TASKS._registered, "digits", replace(digits.TASKS[0], load=one_pixel_less))
    second = keys(plan(table, zoo))
    assert not set(first.values()) & set(second.values())


def test_a_mended_method_makes_other_cells(monkeypatch: pytest.MonkeyPatch, table: str, zoo: Zoo) -> None:
    first = keys(plan(table, zoo))
    cls = registry.get("kd")
    monkeypatch.setattr(cls, "card", replace(cls.card, version=cls.card.version + 1))
    second = keys(plan(table, zoo))
    assert {place[0] for place in first if first[place] != second[place]} == {"kd", "kd-2"}


def test_another_version_of_the_protocol_makes_other_cells(tmp_path: Path, zoo: Zoo) -> None:
    made = []
    for version in (1, 2):
        (tmp_path / "p.yaml").write_text(f"extends: digits-demo\nname: p\nversion: {version}\n")
        (tmp_path / "t.yaml").write_text(TABLE.replace("digits-demo", f"{tmp_path}/p.yaml"))
        made.append(keys(plan(str(tmp_path / "t.yaml"), zoo)))
    assert not set(made[0].values()) & set(made[1].values())


def test_protocols_are_not_confused_by_their_length(table: str, zoo: Zoo) -> None:
    usual = load_protocol("digits-demo").epochs
    assert keys(plan(table, zoo)) == keys(plan(table, zoo, epochs=usual))
    assert not set(keys(plan(table, zoo)).values()) & set(keys(plan(table, zoo, epochs=usual + 1)).values())


def test_a_plugins_method_is_known_within_modified_and_combined_names(table: str, zoo: Zoo) -> None:
    digests = {"method:kd": "1" * 64, "method:sp": "2" * 64}
    cells = plan(table, zoo, methods=("kd@ls", "crd+sp", "dkd"), plugins=digests).cells
    used = {row: cells[row, "resnet14-resnet8", 0].plugins for row in ("kd@ls", "crd+sp", "dkd")}
    assert used == {"kd@ls": {"method:kd": "1" * 64}, "crd+sp": {"method:sp": "2" * 64}, "dkd": {}}
