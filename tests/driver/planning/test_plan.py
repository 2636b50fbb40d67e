"""From a request to cells: what shares a cell, which settings and teachers it has, what the plan costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.plans import CPU, TABLE, entry, keys, plan, teacher_file

from benchmarks import tasks
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.config.published import pair_settings
from benchmarks.config.table_spec import load_table, table_names
from benchmarks.cost.cards import speed
from benchmarks.driver.engines.counting import at_once
from benchmarks.driver.planning.estimate import Estimate
from benchmarks.store.make_cell import student_cell
from benchmarks.store.runs import Run
from benchmarks.tasks.data_sets import digits
from benchmarks.teachers.zoo import Zoo
from benchmarks.training.group import Group
from benchmarks.training.student_run import StudentRun
from kd_methods import registry
from kd_methods.errors import UserError


def test_a_plan_has_every_cell_of_the_table(table: str, zoo: Zoo) -> None:
    made = plan(table, zoo)
    pairs = ["resnet14-resnet8", "wrn_16_1-resnet8", "wrn_16_1-wrn_16_1"]
    assert set(made.cells) == {(r, p, s) for r in ("student", "kd", "dkd", "kd-2") for p in pairs for s in (0, 1)}
    assert made.table_folder == "mine-paper"
    assert len(set(keys(made).values())) == 4 + 3 * 3 * 2, "2 students x 2 seeds, and 3 taught rows x 3 pairs x 2 seeds"


def test_rows_without_a_teacher_share_a_cell_between_pairs_with_one_student(table: str, zoo: Zoo) -> None:
    cells = plan(table, zoo).cells
    assert cells["student", "resnet14-resnet8", 0].key == cells["student", "wrn_16_1-resnet8", 0].key
    assert cells["student", "resnet14-resnet8", 0].key != cells["student", "resnet14-resnet8", 1].key
    assert cells["student", "resnet14-resnet8", 0].key != cells["student", "wrn_16_1-wrn_16_1", 0].key
    assert cells["kd", "resnet14-resnet8", 0].key != cells["kd", "wrn_16_1-resnet8", 0].key
    assert cells["student", "resnet14-resnet8", 0].teacher is None


def test_a_student_cell_serves_as_a_teacher(table: str, zoo: Zoo) -> None:
    """Training wrn_16_1 as a teacher is the same work as its row of plain students with seed 0."""
    made = plan(table, zoo)
    training = {cell.student: cell.key for cell in made.training}
    assert set(training) == {"resnet14", "wrn_16_1"}
    assert training["wrn_16_1"] == made.cells["student", "wrn_16_1-wrn_16_1", 0].key


def test_one_teacher_cell_serves_all_seeds(table: str, zoo: Zoo) -> None:
    made = plan(table, zoo, seeds=(3, 4))
    teachers = {made.cells["kd", "resnet14-resnet8", seed].teacher for seed in (3, 4)}
    assert len(teachers) == 1
    (ref,) = teachers
    as_student = student_cell("resnet14", made.protocol, made.data["digits"], {})
    assert ref and (ref.cell, ref.weights) == (as_student.key, "") and as_student.seed == 0
    assert (ref.mean, ref.std) == (made.protocol.mean, made.protocol.std)


def test_teachers_may_have_a_protocol_of_their_own(table: str, zoo: Zoo) -> None:
    folder = Path(table).parent
    (folder / "hard.yaml").write_text(
        "extends: digits-demo\nname: hard\nversion: 1\nlabel_noise: 0.5\nlr_alone: 0.007\nteachers_from: easy.yaml\n"
    )
    (folder / "easy.yaml").write_text(
        "extends: digits-demo\nname: easy\nversion: 1\nmean: [0.1, 0.1, 0.1]\nepochs: 16\n"
    )
    Path(table).write_text(TABLE.replace("protocol: digits-demo", "protocol: hard.yaml"))
    made = plan(table, zoo, epochs=3, pairs=("wrn_16_1-wrn_16_1",))
    (teacher,) = made.training
    easy, hard = load_protocol(str(folder / "easy.yaml")), load_protocol(str(folder / "hard.yaml"))
    assert easy.epochs == 2 * hard.epochs, "and so it stays in another length"
    assert teacher == student_cell("wrn_16_1", easy.changed(epochs=6), made.data["digits"], {})
    held = hard.model_copy(update={"holdout": 100})
    assert held.for_teachers({"holdout": None}).holdout == 100, "its teacher must not see them either"
    taught, plain = made.cells["kd", "wrn_16_1-wrn_16_1", 0], made.cells["student", "wrn_16_1-wrn_16_1", 0]
    assert taught.teacher and (taught.teacher.cell, taught.teacher.mean) == (teacher.key, (0.1, 0.1, 0.1))
    assert taught.protocol["label_noise"] == 0.5 and "label_noise" not in teacher.protocol
    assert (taught.lr, plain.lr, teacher.lr) == (hard.optimizer.lr, 0.007, easy.optimizer.lr)
    order = made.stages([taught, plain, teacher])
    assert [(protocol.name, cells) for protocol, cells in order] == [("easy", [[teacher]]), ("hard", [[taught, plain]])]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("batch_size: 2048\ndrop_last: true", "1437 training samples here, fewer than a batch of 2048"),
        ("crop_padding: 16", "protocol easy: crop_padding 16 leaves nothing"),
    ],
)
def test_a_protocol_of_teachers_fits_the_data_too(table: str, zoo: Zoo, line: str, words: str) -> None:
    folder = Path(table).parent
    (folder / "hard.yaml").write_text("extends: digits-demo\nname: hard\nversion: 1\nteachers_from: easy.yaml\n")
    (folder / "easy.yaml").write_text(f"extends: digits-demo\nname: easy\nversion: 1\n{line}\n")
    Path(table).write_text(TABLE.replace("protocol: digits-demo", "protocol: hard.yaml"))
    with pytest.raises(UserError, match=words):
        plan(table, zoo, pairs=("wrn_16_1-wrn_16_1",))


def test_metrics_of_the_tables_are_those_of_their_tasks() -> None:
    for spec in map(load_table, table_names()):
        for name in spec.presets:
            preset = spec.preset(name)
            for pair in preset.pairs or ():
                task = tasks.get_task(pair.task or preset.task or load_protocol(preset.protocol).task)
                assert {pair.metric or spec.metric or task.metric, task.metric} <= set(task.metrics), (spec.name, pair)


def test_a_cell_is_trained_with_its_rows_optimiser_and_its_own_rate(table: str, zoo: Zoo) -> None:
    """The group's protocol has those of the table; what trains a cell asks one place."""
    Path(table).write_text(TABLE.replace("dkd,", "{id: dot, method: kd, optimizer: {name: dot, delta: 0.05}},"))
    made = plan(table, zoo)
    protocol = made.protocol.model_copy(update={"lr_by_student": {"resnet8": 0.01}, "lr_alone": 0.02})
    for row, name in (("kd", "sgd"), ("dot", "dot")):
        cell = replace(made.cells[row, "resnet14-resnet8", 0], lr=0.03)
        placed = cell.under(protocol)
        assert (placed.optimizer.name, placed.optimizer.lr, placed.lr("resnet8"), placed.lr("resnet8", False)) == (
            name,
            *[0.03] * 3,
        )
        shared = {"optimizer", "lr_by_student", "lr_alone"}
        assert placed.model_dump(exclude=shared) == protocol.model_dump(exclude=shared)
        cell = replace(cell, method="student", settings={}, teacher=None)
        group = Group(protocol, digits.TASKS[0].open(zoo.folder, protocol, CPU))
        student_run = StudentRun(cell, group, Run(zoo.folder / row))
        assert student_run.protocol == placed and student_run.optimizer.param_groups[0]["lr"] == 0.03


def test_without_taught_rows_no_teacher_is_trained(table: str, zoo: Zoo) -> None:
    made = plan(table, zoo, methods=("student",))
    assert made.training == () and set(made.teachers) == {(pair.teacher, "digits") for pair in made.pairs}


def test_a_request_chooses_rows_columns_and_seeds(table: str, zoo: Zoo) -> None:
    made = plan(table, zoo, methods=("at", "kd", "kd"), pairs=("vgg8-resnet8",), seeds=(7, 7, 8), epochs=3)
    assert set(made.cells) == {(r, "vgg8-resnet8", s) for r in ("kd", "at") for s in (7, 8)}
    assert made.table_folder == "mine-paper-epochs3" and made.protocol.epochs == 3
    assert {cell.student for cell in made.training} == {"vgg8"}


def test_another_setting_is_another_row_beside_the_usual_one(table: str, zoo: Zoo) -> None:
    before = plan(table, zoo)
    after = plan(table, zoo, overrides=("kd.temperature=3", "kd.temperature=5", "dkd.beta=3.0", "dkd.alpha=2e0"))
    pair = "resnet14-resnet8"
    assert [row.id for row in after.rows] == ["student", "kd", "kd:temperature=5", "dkd", "dkd:alpha=2:beta=3", "kd-2"]
    titles = {row.id: row.title for row in after.rows}
    assert titles["kd:temperature=5"] == "KD (T = 5)" and titles["dkd:alpha=2:beta=3"] == "DKD (α = 2, β = 3)"  # noqa: RUF001
    assert after.cells["kd:temperature=5", pair, 0].settings["temperature"] == 5.0, "the last one holds"
    assert after.cells["dkd:alpha=2:beta=3", pair, 0].settings["beta"] == 3.0
    assert keys(before).items() < keys(after).items(), "every row is as it was"


def test_a_row_with_another_setting_can_be_named_alone(table: str, zoo: Zoo) -> None:
    beside = plan(table, zoo, methods=("dkd",), overrides=("dkd.beta=3",))
    alone = plan(table, zoo, methods=("dkd:beta=3.0",))
    assert {row for row, _, _ in alone.cells} == {"dkd:beta=3"} and keys(alone).items() < keys(beside).items()
    assert keys(plan(table, zoo, methods=("dkd", "dkd:beta=3"), overrides=("dkd.beta=3",))) == keys(beside)


def test_an_override_of_the_default_is_the_same_cell(table: str, zoo: Zoo) -> None:
    default = registry.settings("kd").temperature
    made = plan(table, zoo, overrides=(f"kd.temperature={default:g}",))
    assert {key for (row, _, _), key in keys(made).items() if row == f"kd:temperature={default:g}"} == {
        key for (row, _, _), key in keys(made).items() if row == "kd"
    }


def test_a_row_of_a_table_is_overridden_by_its_id(table: str, zoo: Zoo) -> None:
    made = plan(table, zoo, overrides=("kd-2.temperature=9",))
    assert made.cells["kd-2:temperature=9", "resnet14-resnet8", 0].settings["temperature"] == 9.0
    assert made.cells["kd-2", "resnet14-resnet8", 0].settings["temperature"] == 2.0
    assert made.cells["kd", "resnet14-resnet8", 0].settings == registry.settings("kd").model_dump(mode="json")


def test_overrides_win_over_what_is_published_for_a_pair(tmp_path: Path, zoo: Zoo) -> None:
    (tmp_path / "p.yaml").write_text("extends: digits-demo\nname: p\nrecipe: cifar100-crd240\n")
    path = tmp_path / "t.yaml"
    path.write_text(
        TABLE.replace("[resnet14-resnet8,", "[resnet56-resnet20,").replace("digits-demo", f"{tmp_path}/p.yaml")
    )
    published = plan(str(path), zoo, pairs=("resnet56-resnet20",), methods=("dkd",), seeds=(0,))
    assert published.cells["dkd", "resnet56-resnet20", 0].settings["beta"] == 2.0
    ours = plan(str(path), zoo, pairs=("resnet56-resnet20",), methods=("dkd",), seeds=(0,), overrides=("dkd.beta=4",))
    assert ours.cells["dkd:beta=4", "resnet56-resnet20", 0].settings["beta"] == 4.0


def test_a_plan_is_the_same_every_time(table: str, zoo: Zoo) -> None:
    assert keys(plan(table, zoo)) == keys(plan(table, Zoo(zoo.folder)))


def test_the_users_own_teacher_comes_before_a_shipped_one(tmp_path: Path, zoo: Zoo) -> None:
    assert zoo.installed("resnet20", "cifar100") is None
    shipped = zoo.get("resnet20-chenyaofo")
    zoo.path(shipped).parent.mkdir(parents=True)
    file = teacher_file(tmp_path / "f", "resnet20", 0, num_classes=100)
    zoo.path(shipped).write_bytes(file.read_bytes())
    assert zoo.installed("resnet20", "cifar100") == shipped
    assert zoo.installed("resnet20", "digits") is None and zoo.installed("resnet56", "cifar100") is None

    other = zoo.add(entry("a-resnet20", "resnet20", "cifar100"), file)
    assert zoo.installed("resnet20", "cifar100") == other
    named = zoo.add(entry("resnet20", "resnet20", "cifar100"), file)
    assert zoo.installed("resnet20", "cifar100") == named, "the one that is called like the network"
    zoo.path(named).unlink()
    assert zoo.installed("resnet20", "cifar100") == other


def test_uniform_settings_leave_out_what_is_published_for_a_pair(tmp_path: Path, zoo: Zoo) -> None:
    text = TABLE.replace("digits-demo", "recipe.yaml").replace("resnet14-resnet8", "resnet56-resnet20")
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "recipe.yaml").write_text("extends: digits-demo\nname: r\nversion: 1\nrecipe: cifar100-crd240\n")
    place = ("dkd", "resnet56-resnet20", 0)
    published, uniform = (plan(str(tmp_path / "mine.yaml"), zoo, uniform=choice) for choice in (False, True))
    assert published.cells[place].settings["beta"] == 2.0 and uniform.cells[place].settings["beta"] == 8.0
    assert keys(published)["dkd", "wrn_16_1-resnet8", 0] == keys(uniform)["dkd", "wrn_16_1-resnet8", 0]
    assert (published.table_folder, uniform.table_folder) == ("mine-paper", "mine-paper-uniform")


def test_a_combination_takes_the_published_settings_of_its_parts() -> None:
    assert pair_settings("crd+kd", "resnet56-resnet20", "cifar100-crd240") == {"kd": {"kd": 1.0}}
    published = pair_settings("reviewkd+dkd", "resnet56-resnet20", "cifar100-crd240")
    assert published == {"reviewkd": {"beta": 0.6}, "dkd": {"beta": 2.0}}
    assert pair_settings("crd+kd", "resnet56-resnet20", "digits-demo") == {}


def test_an_estimate_counts_first_phases(table: str, zoo: Zoo) -> None:
    """AB: one epoch with the teacher's pass, then eight of the student alone; a pair that is refused costs nothing."""
    pair = "resnet14-resnet8"
    made = plan(table, zoo, methods=("student", "kd", "ab"), pairs=(pair,), seeds=(0,))
    where = Workspace(torch.device("cpu"), zoo.folder)
    estimate = Estimate(made, {cell.key: 1.0 for cell in made.cells.values()}, where)
    student, kd, ab = (estimate.operations(made.cells[row, pair, 0]) for row in ("student", "kd", "ab"))
    assert student and kd and ab
    teacher = kd - student
    assert ab == pytest.approx(9 / 8 * student + teacher / 8, rel=0.01)
    assert estimate.seconds()
    only = Estimate(made, {made.cells["kd", pair, 0].key: 1.0}, where)
    assert only.operations(made.cells["kd", pair, 0]) == kd
    assert only.operations(made.cells["ab", pair, 0]) is None, "what is stored is not counted again"
    refused = plan(table, zoo, methods=("fsp",), pairs=("vgg8-resnet8",), seeds=(0,))
    cell = refused.cells["fsp", "vgg8-resnet8", 0]
    assert Estimate(refused, {cell.key: 1.0}, where).operations(cell) == 0


def test_the_hours_of_cells_with_several_processes(table: str, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a part of the work and a device of its own; cells of a group share no pass of the teacher then."""

    def seconds(*methods: str, processes: int) -> float:
        chosen: dict[str, Any] = {"methods": methods, "pairs": ("resnet14-resnet8",), "seeds": (0,)}
        made = plan(table, zoo, processes=processes, **chosen)
        left = {cell.key: 1.0 for cell in made.cells.values()}
        estimated = Estimate(made, left, Workspace(torch.device("cpu"), zoo.folder), speed("1", "fp32")).seconds()
        assert estimated
        return estimated

    alone, kd, both = (seconds(*methods, processes=1) for methods in (("student",), ("kd",), ("kd", "dkd")))
    assert seconds("student", processes=4) == pytest.approx(alone / 4)
    assert both < 2 * kd and seconds("kd", "dkd", processes=4) == pytest.approx(2 * kd / 4, rel=0.01)
    monkeypatch.setattr("benchmarks.common.machine.cores", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert [at_once(count, torch.device("cpu")) for count in (2, 4)] == [2, 2], "no more than there are cores"
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert at_once(2, torch.device("cpu")) == 1, "each has one of the threads that one process has"
    assert at_once(2, torch.device("cuda")) == 2
