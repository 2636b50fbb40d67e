"""From a request to cells: what shares a cell, what makes another, and which names are refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import tasks
from benchmarks.common import plugins
from benchmarks.common.workspace import Workspace
from benchmarks.config import published, table_spec
from benchmarks.config.protocol import load_protocol
from benchmarks.config.table_spec import load_table, pair_settings, table_names
from benchmarks.driver.estimate import estimate
from benchmarks.driver.plan import Plan, Request, make
from benchmarks.networks import build_network
from benchmarks.store.cells import student_cell
from benchmarks.store.runs import Run
from benchmarks.tasks import digits
from benchmarks.tasks.images import Split
from benchmarks.teachers.zoo import Teacher, Zoo
from benchmarks.training.student_run import StudentRun
from kd_methods import registry
from kd_methods.errors import UserError

CPU = torch.device("cpu")
TABLE = """\
name: mine
title: "My table"
pairs: [resnet14-resnet8, wrn_16_1-resnet8, wrn_16_1-wrn_16_1]
methods: [student, kd, dkd, {id: kd-2, method: kd, settings: {temperature: 2}}]
presets:
  paper: {protocol: digits-demo, seeds: [0, 1]}
"""
METHOD = """\
import kd_methods
from kd_methods.contract import Card, Losses, Method, Needs


@kd_methods.register
class Mine(Method):
    "A user's own."

    card = Card(name="plan_mine", version=1, family="logit", title="Mine")
    needs = Needs(teacher=("logits",))

    def losses(self, student, teacher, batch, progress):
        return Losses(task={"task": batch.loss(student.logits)})
"""


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE)
    return str(path)


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path / "checkpoints")


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone afterwards."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield


def plan(table: str, zoo: Zoo, **request: Any) -> Plan:
    changes = {name: request.pop(name) for name in ("epochs", "holdout") if name in request}
    workspace = Workspace(torch.device("cpu"), zoo.folder, zoo.folder, plugins=request.pop("plugins", {}))
    return make(Request(table=table, changes=changes, **request), workspace)  # type: ignore[arg-type]


def keys(made: Plan) -> dict[tuple[str, str, int], str]:
    return {place: cell.key for place, cell in made.cells.items()}


def teacher_file(folder: Path, network: str, seed: int, num_classes: int = 10) -> Path:
    torch.manual_seed(seed)
    folder.mkdir(exist_ok=True)
    path = folder / f"{network}-{seed}.pth"
    torch.save(build_network(network, num_classes).module.state_dict(), path)
    return path


def entry(name: str, network: str, task: str = "digits") -> Teacher:
    return Teacher(name=name, network=network, task=task, mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35))


def test_a_plan_has_every_cell_of_the_table(table: str, zoo: Zoo) -> None:
    made = plan(table, zoo)
    pairs = ["resnet14-resnet8", "wrn_16_1-resnet8", "wrn_16_1-wrn_16_1"]
    assert set(made.cells) == {(r, p, s) for r in ("student", "kd", "dkd", "kd-2") for p in pairs for s in (0, 1)}
    assert made.stem == "mine-paper"
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
    own = student_cell("resnet14", made.protocol, zoo.folder, {})
    assert ref and (ref.cell, ref.weights) == (own.key, "") and own.seed == 0
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
    assert teacher == student_cell("wrn_16_1", easy.changed(epochs=6), zoo.folder, {})
    held = hard.model_copy(update={"holdout": 100})
    assert held.for_teachers({"holdout": None}).holdout == 100, "its teacher must not see them either"
    taught, plain = made.cells["kd", "wrn_16_1-wrn_16_1", 0], made.cells["student", "wrn_16_1-wrn_16_1", 0]
    assert taught.teacher and (taught.teacher.cell, taught.teacher.mean) == (teacher.key, (0.1, 0.1, 0.1))
    assert taught.protocol["label_noise"] == 0.5 and "label_noise" not in teacher.protocol
    assert (taught.lr, plain.lr, teacher.lr) == (hard.optimizer.lr, 0.007, easy.optimizer.lr)
    order = made.stages([taught, plain, teacher])
    assert [(protocol.name, cells) for protocol, cells in order] == [("easy", [[teacher]]), ("hard", [[taught, plain]])]


def test_a_protocol_for_teachers_is_none_for_students(table: str, zoo: Zoo) -> None:
    own = Path(table).parent / "started.yaml"
    own.write_text("extends: digits-demo\nname: started\nversion: 1\nstart: imagenet\n")
    Path(table).write_text(TABLE.replace("protocol: digits-demo", "protocol: started.yaml"))
    with pytest.raises(UserError, match="started is one for teachers"):
        plan(table, zoo)


def test_a_rate_for_an_unknown_student_is_refused(table: str, zoo: Zoo) -> None:
    (Path(table).parent / "p.yaml").write_text(
        "extends: digits-demo\nname: p\nversion: 1\nlr_by_student:\n  resnet8: 0.1\n  Resnet14: 0.5\n"
    )
    Path(table).write_text(TABLE.replace("digits-demo", "p.yaml"))
    with pytest.raises(UserError, match=r"p\.yaml line 6: lr_by_student\.Resnet14: .*did you mean resnet14"):
        plan(table, zoo)


def test_a_crop_that_can_miss_the_image_is_refused(table: str, zoo: Zoo) -> None:
    own = Path(table).parent / "p.yaml"
    Path(table).write_text(TABLE.replace("digits-demo", "p.yaml"))
    own.write_text("extends: digits-demo\nname: p\nversion: 1\ncrop_padding: 16\n")
    with pytest.raises(UserError, match=r"crop_padding 16 leaves nothing, images of task digits have 16 pixels"):
        plan(table, zoo)
    own.write_text("extends: digits-demo\nname: p\nversion: 1\ncrop_padding: 15\n")
    assert plan(table, zoo).protocol.crop_padding == 15


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("presets:", "metric: topp1\npresets:"),
        ("presets:", "tasks: [{task: digits, metric: topp1}]\npresets:"),
        ("[resnet14-resnet8,", "[{id: p, teacher: resnet14, student: resnet8, metric: topp1},"),
    ],
)
def test_a_metric_that_the_task_does_not_have_is_refused(table: str, zoo: Zoo, old: str, new: str) -> None:
    Path(table).write_text(TABLE.replace(old, new))
    with pytest.raises(UserError, match=r"column '.*' of table mine: unknown metric 'topp1'; did you mean top1"):
        plan(table, zoo)


def test_metrics_of_the_tables_are_those_of_their_tasks() -> None:
    for spec in map(load_table, table_names()):
        for name in spec.presets:
            preset = spec.preset(name)
            for pair in preset.pairs or ():
                task = tasks.get_task(pair.task or preset.task or load_protocol(preset.protocol).task)
                assert {pair.metric or spec.metric or task.metric, task.metric} <= set(task.metrics), (spec.name, pair)


def test_published_values_are_read_before_anything_is_trained(
    table: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "published").mkdir()
    header = "method,pair,value,std,source,epoch_rule,protocol,teacher,note\n"
    (tmp_path / "published" / "mine.csv").write_text(header + "kd,p,seventy,,here,last,digits-demo,crd,\n")
    monkeypatch.setattr(published, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(table_spec, "PUBLISHED", tmp_path / "published")
    Path(table).write_text(TABLE.replace("presets:", "published: mine.csv\npresets:"))
    with pytest.raises(UserError, match=r"mine\.csv line 2: value: Input should be a valid number"):
        plan(table, zoo)


def test_a_cell_is_trained_with_its_rows_optimiser_and_its_own_rate(table: str, zoo: Zoo) -> None:
    """The group's protocol has those of the table; what trains a cell asks one place."""
    Path(table).write_text(TABLE.replace("dkd,", "{id: dot, method: kd, optimizer: {name: dot, delta: 0.05}},"))
    made = plan(table, zoo)
    protocol = made.protocol.model_copy(update={"lr_by_student": {"resnet8": 0.01}, "lr_alone": 0.02})
    for row, name in (("kd", "sgd"), ("dot", "dot")):
        cell = replace(made.cells[row, "resnet14-resnet8", 0], lr=0.03)
        own = cell.under(protocol)
        assert (own.optimizer.name, own.optimizer.lr, own.lr("resnet8"), own.lr("resnet8", False)) == (
            name,
            *[0.03] * 3,
        )
        shared = {"optimizer", "lr_by_student", "lr_alone"}
        assert own.model_dump(exclude=shared) == protocol.model_dump(exclude=shared)
        cell = replace(cell, method="student", settings={}, teacher=None)
        student_run = StudentRun(
            cell, protocol, digits.TASKS[0].open(zoo.folder, protocol, CPU), None, Run(zoo.folder / row)
        )
        assert student_run.protocol == own and student_run.optimizer.param_groups[0]["lr"] == 0.03


def test_without_taught_rows_no_teacher_is_trained(table: str, zoo: Zoo) -> None:
    made = plan(table, zoo, methods=("student",))
    assert made.training == () and set(made.teachers) == {(pair.teacher, "digits") for pair in made.pairs}


def test_a_request_chooses_rows_columns_and_seeds(table: str, zoo: Zoo) -> None:
    made = plan(table, zoo, methods=("at", "kd", "kd"), pairs=("vgg8-resnet8",), seeds=(7, 7, 8), epochs=3)
    assert set(made.cells) == {(r, "vgg8-resnet8", s) for r in ("kd", "at") for s in (7, 8)}
    assert made.stem == "mine-paper-epochs3" and made.protocol.epochs == 3
    assert {cell.student for cell in made.training} == {"vgg8"}


def test_overrides_change_their_row_alone(table: str, zoo: Zoo) -> None:
    before = plan(table, zoo)
    after = plan(table, zoo, overrides=("kd.temperature=3", "kd.temperature=5", "dkd.beta=3"))
    pair = "resnet14-resnet8"
    assert after.cells["kd", pair, 0].settings["temperature"] == 5.0, "the last one holds"
    assert after.cells["kd-2", pair, 0].settings["temperature"] == 2.0
    assert after.cells["dkd", pair, 0].settings["beta"] == 3.0
    changed = {place for place in before.cells if keys(before)[place] != keys(after)[place]}
    assert {row for row, _, _ in changed} == {"kd", "dkd"} and len(changed) == 12


def test_an_override_of_the_default_is_the_same_cell(table: str, zoo: Zoo) -> None:
    default = registry.settings("kd").temperature
    assert keys(plan(table, zoo)) == keys(plan(table, zoo, overrides=(f"kd.temperature={default:g}",)))


def test_a_row_of_a_table_is_overridden_by_its_id(table: str, zoo: Zoo) -> None:
    made = plan(table, zoo, overrides=("kd-2.temperature=9",))
    assert made.cells["kd-2", "resnet14-resnet8", 0].settings["temperature"] == 9.0
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
    assert ours.cells["dkd", "resnet56-resnet20", 0].settings["beta"] == 4.0


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"preset": "papper"}, "did you mean paper"),
        ({"methods": ("dkdd",)}, "unknown method 'dkdd'; did you mean dkd"),
        ({"pairs": ("resnet14-resnet9",)}, "unknown pair 'resnet14-resnet9'; did you mean resnet14-resnet8"),
        ({"pairs": ("resnet14",)}, "unknown pair 'resnet14'"),
        ({"overrides": ("kd.temprature=2",)}, "did you mean temperature"),
        ({"overrides": ("kdd.temperature=2",)}, "unknown method in --set 'kdd'; did you mean kd"),
        ({"overrides": ("kd.temperature",)}, "write METHOD.key=value"),
        ({"overrides": ("temperature=2",)}, "write METHOD.key=value"),
        ({"overrides": ("kd.=2",)}, "write METHOD.key=value"),
        ({"overrides": ("kd.temperature=[2",)}, "is not a value"),
        ({"overrides": ("kd.temperature=warm",)}, "kd.temperature"),
        ({"overrides": ("kd.temperature=",)}, "kd.temperature"),
        ({"overrides": ("kd.temperature=-1",)}, "kd.temperature"),
        ({"overrides": ("kd.temperature=.inf",)}, "kd.temperature"),
        ({"overrides": ("kd.temperature=.nan",)}, "kd.temperature"),
        ({"epochs": 0}, "at least 1"),
        ({"holdout": 1437}, "--holdout 1437: the training set has 1437 samples"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_clear_line(table: str, zoo: Zoo, request_: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        plan(table, zoo, **request_)
    assert "\n" not in str(caught.value)


def test_an_unknown_network_in_a_table_is_named(tmp_path: Path, zoo: Zoo) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(TABLE.replace("[resnet14-resnet8,", "[resnet14-resnett8,"))
    with pytest.raises(UserError, match="unknown network 'resnett8'; did you mean resnet8"):
        plan(str(path), zoo)


def test_an_unknown_method_or_task_in_a_file_is_named(tmp_path: Path, zoo: Zoo) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(TABLE.replace("dkd,", "dkdd,"))
    with pytest.raises(UserError, match="unknown method 'dkdd'"):
        plan(str(path), zoo)
    path.write_text(TABLE.replace("seeds:", "task: digit, seeds:"))
    with pytest.raises(UserError, match="unknown task 'digit'; did you mean digits"):
        plan(str(path), zoo)


def test_holdout_makes_other_cells(table: str, zoo: Zoo) -> None:
    whole, split = plan(table, zoo), plan(table, zoo, holdout=200)
    assert split.protocol.holdout == 200 and split.stem == "mine-paper-holdout200"
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
    assert all(cell.plugins for cell in plan(table, zoo, plugins={"task:digits": "abc"}).cells.values())


def test_a_plugin_is_named_by_what_it_registers(tmp_path: Path, clean_registry: None, table: str, zoo: Zoo) -> None:
    file = tmp_path / "my method.py"
    file.write_text(METHOD)
    loaded = plugins.load([file])
    assert loaded == {"method:plan_mine": hashlib.sha256(METHOD.encode()).hexdigest()}
    made = plan(table, zoo, methods=("plan_mine", "kd"), plugins=loaded)
    assert made.cells["plan_mine", "resnet14-resnet8", 0].plugins == loaded
    assert made.cells["kd", "resnet14-resnet8", 0].plugins == {}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("absent.py", None, "there is no such file"),
        ("syntax.py", "def f(:\n", "SyntaxError"),
        ("crash.py", "1 / 0\n", "ZeroDivisionError"),
        ("nothing.py", "x = 1\n", "registers nothing"),
        ("notes.txt", METHOD, "a plugin is a Python file"),
        ("taken.py", METHOD.replace("plan_mine", "kd"), "called 'kd'"),
    ],
)
def test_a_wrong_plugin_is_one_clear_line(
    tmp_path: Path, clean_registry: None, name: str, text: str | None, words: str
) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        plugins.load([file])
    assert len(str(caught.value).splitlines()) == 1


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

    monkeypatch.setitem(tasks.TASKS._registered, "digits", replace(digits.TASKS[0], load=one_pixel_less, _cache={}))
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


def test_protocols_are_not_confused_by_their_length(table: str, zoo: Zoo) -> None:
    usual = load_protocol("digits-demo").epochs
    assert keys(plan(table, zoo)) == keys(plan(table, zoo, epochs=usual))
    assert not set(keys(plan(table, zoo)).values()) & set(keys(plan(table, zoo, epochs=usual + 1)).values())


def test_uniform_settings_leave_out_what_is_published_for_a_pair(tmp_path: Path, zoo: Zoo) -> None:
    text = TABLE.replace("digits-demo", "recipe.yaml").replace("resnet14-resnet8", "resnet56-resnet20")
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "recipe.yaml").write_text("extends: digits-demo\nname: r\nversion: 1\nrecipe: cifar100-crd240\n")
    place = ("dkd", "resnet56-resnet20", 0)
    published, uniform = (plan(str(tmp_path / "mine.yaml"), zoo, uniform=choice) for choice in (False, True))
    assert published.cells[place].settings["beta"] == 2.0 and uniform.cells[place].settings["beta"] == 8.0
    assert keys(published)["dkd", "wrn_16_1-resnet8", 0] == keys(uniform)["dkd", "wrn_16_1-resnet8", 0]
    assert (published.stem, uniform.stem) == ("mine-paper", "mine-paper-uniform")


def test_a_combination_takes_the_published_settings_of_its_parts() -> None:
    assert pair_settings("crd+kd", "resnet56-resnet20", "cifar100-crd240") == {"kd": {"kd": 1.0}}
    found = pair_settings("reviewkd+dkd", "resnet56-resnet20", "cifar100-crd240")
    assert found == {"reviewkd": {"beta": 0.6}, "dkd": {"beta": 2.0}}
    assert pair_settings("crd+kd", "resnet56-resnet20", "digits-demo") == {}


def test_settings_of_a_combination(table: str, zoo: Zoo) -> None:
    made = plan(table, zoo, methods=("crd+kd", "kd"), overrides=("crd+kd.kd.temperature=2", "crd+kd.crd.dim=64"))
    settings = made.cells["crd+kd", "resnet14-resnet8", 0].settings
    assert settings["kd"] == {"ce": 0.1, "kd": 0.9, "temperature": 2.0} and settings["crd"]["dim"] == 64
    assert made.cells["kd", "resnet14-resnet8", 0].settings["temperature"] == 4.0
    for text, words in {
        "crd+kd.dkd.beta=2": "unknown setting of method 'crd.kd' 'dkd.beta'",
        "crd+kd.kd.temprature=2": "did you mean temperature",
        "crd+kd.kd=2": "name a setting of the part",
        "crd+kd=2": "write METHOD.key=value",
    }.items():
        with pytest.raises(UserError, match=words):
            plan(table, zoo, methods=("crd+kd",), overrides=(text,))


def test_a_method_that_wants_two_views_is_told_where_it_gets_them(table: str, zoo: Zoo) -> None:
    with pytest.raises(UserError, match=r"two views .* digits-demo gives one; .* digits-mlld-demo"):
        plan(table, zoo, methods=("mlld",))


def test_a_plugins_method_is_known_within_modified_and_combined_names(table: str, zoo: Zoo) -> None:
    digests = {"method:kd": "1" * 64, "method:sp": "2" * 64}
    cells = plan(table, zoo, methods=("kd@ls", "crd+sp", "dkd"), plugins=digests).cells
    used = {row: cells[row, "resnet14-resnet8", 0].plugins for row in ("kd@ls", "crd+sp", "dkd")}
    assert used == {"kd@ls": {"method:kd": "1" * 64}, "crd+sp": {"method:sp": "2" * 64}, "dkd": {}}


def test_an_estimate_counts_first_phases(table: str, zoo: Zoo) -> None:
    """AB: one epoch with the teacher's pass, then eight of the student alone; a pair that is refused costs nothing."""
    pair = "resnet14-resnet8"
    made = plan(table, zoo, methods=("student", "kd", "ab"), pairs=(pair,), seeds=(0,))
    where = Workspace(torch.device("cpu"), zoo.folder)
    found = estimate(made, {cell.key: 1.0 for cell in made.cells.values()}, where)
    student, kd, ab = (found.operations[made.cells[row, pair, 0].key] for row in ("student", "kd", "ab"))
    teacher = kd - student
    assert ab == pytest.approx(9 / 8 * student + teacher / 8, rel=0.01)
    assert found.seconds > 0
    only = made.cells["kd", pair, 0].key
    assert estimate(made, {only: 1.0}, where).operations == {only: kd}, "what is stored is not counted again"
    refused = plan(table, zoo, methods=("fsp",), pairs=("vgg8-resnet8",), seeds=(0,))
    cell = refused.cells["fsp", "vgg8-resnet8", 0]
    assert estimate(refused, {cell.key: 1.0}, where).operations[cell.key] == 0
