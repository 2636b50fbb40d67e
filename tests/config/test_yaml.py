"""What a user's tables and protocols may do, and what they may get wrong: one line with its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.config_files import PROTOCOL, TABLE, message

from benchmarks.common.yaml_files import Shelf, read_yaml
from benchmarks.config import table_spec
from benchmarks.config.protocol import load_protocol
from benchmarks.config.table_spec import Pair, Row, TableSpec, TaskColumn, columns, labels, load_table
from kd_methods.errors import UserError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("methods: [kd]\nmethods: [dkd]", "line 7: the key 'methods' is there twice"),
        ("x: {{a: 1}: 2}", "line 6"),
        ("methods: [{id: a, method: kd, optimizer: {lr: 1}}]", "lr is no setting of a row's optimiser"),
        ('methods: ["*", {id: a, methd: kd}]', "methods.1.methd: unknown key"),
    ],
)
def test_what_a_table_may_get_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.yaml").write_text(TABLE.replace("methods: [kd]\n", "") + text + "\n")
    with pytest.raises(UserError) as error:
        load_table(str(tmp_path / "t.yaml"))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_anchors_and_merged_keys_are_no_duplicates(tmp_path: Path) -> None:
    text = "name: a\nx: {q: &q {<<: {z: 1}, z: 2}}\ny: {<<: *q, 1: a, '1': b}\n"
    (tmp_path / "t.yaml").write_text(text)
    assert read_yaml(tmp_path / "t.yaml")["y"]["z"] == 2


def test_a_title_of_ones_own_is_that_of_inherited_presets_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: table1\nname: mine\ntitle: Mine\npresets:\n  short: {title: Shortened}\n")
    table = load_table(str(path))
    assert table.title == "Mine" and table.preset("short").title == "Shortened"
    assert not table.preset("demo").title and load_table("table1").preset("demo").title
    path.write_text("extends: table1\nname: mine\n")
    assert load_table(str(path)).preset("demo").title == load_table("table1").preset("demo").title


def test_extends_takes_over_what_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(PROTOCOL + "optimizer: {lr: 0.01}\n")
    mine, demo = load_protocol(str(path)), load_protocol("digits-demo")
    assert (mine.epochs, mine.optimizer.lr, mine.optimizer.momentum) == (4, 0.01, 0.9)
    assert (mine.batch_size, mine.milestones) == (demo.batch_size, demo.milestones)

    path = tmp_path / "t.yaml"
    path.write_text("extends: table2\nname: mine\npresets:\n  demo: {seeds: [7]}\n")
    table = load_table(str(path))
    assert (
        table.preset("demo").seeds == (7,) and table.preset("demo").pairs == load_table("table2").preset("demo").pairs
    )
    assert table.preset("paper") == load_table("table2").preset("paper")


def test_rows_may_show_a_method_twice(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(TABLE.replace("[kd]", "[kd, {id: kd-2, method: kd, title: KD (T=2), settings: {temperature: 2}}]"))
    rows = load_table(str(path)).methods
    assert [(row.id, row.method, row.settings) for row in rows] == [
        ("kd", "kd", {}),
        ("kd-2", "kd", {"temperature": 2}),
    ]


@pytest.mark.parametrize(("pair", "column"), [("p", "p:rte"), ("hf:a/b-hf:c/d", "hf:a/b-hf:c/d"), ("s:a", "s:a:rte")])
def test_settings_of_one_pair_are_found_by_its_whole_name(pair: str, column: str) -> None:
    row = Row(id="kd", method="kd", settings={"temperature": 2.0}, by_pair={pair: {"temperature": 9.0}})
    assert row.settings_on(column) == {"temperature": 9.0} and row.settings_on("other") == {"temperature": 2.0}


def test_a_pairs_metric_is_its_columns_where_the_task_names_none() -> None:
    pair = Pair(id="a", teacher="t", student="s", metric="top5")
    tasks = (TaskColumn(task="digits"), TaskColumn(task="cifar10", metric="top1"))
    assert [column.metric for column in columns((pair,), tasks)] == ["top5", "top1"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        pytest.param(TABLE.replace("[kd]", "[kd"), 5, "", id="malformed"),
        pytest.param(TABLE + "colour: red\n", 7, "colour: unknown key", id="unknown key"),
        pytest.param(
            TABLE.replace("[0]", "[yes]"), 6, "presets.paper.seeds.0: Input should be a number; YAML", id="yes"
        ),
        pytest.param(TABLE.replace("[0]", "[0], sead: 1"), 6, "sead: unknown key", id="unknown key inside"),
        pytest.param(TABLE.replace("[0]", "many"), 6, "presets.paper.seeds", id="wrong type"),
        pytest.param(TABLE.replace("resnet8-resnet8", "resnet8"), 3, "'resnet8' is not of the form", id="no dash"),
        pytest.param(TABLE.replace("name: mine\n", ""), 1, "name", id="missing key"),
        pytest.param("- kd\n", 1, "mapping", id="a list"),
        pytest.param(TABLE.replace("[kd]", "[kd, {id: kd, method: kd}]"), 4, "methods.1: the row 'kd'", id="row twice"),
        pytest.param(TABLE.replace("[kd]", '["*", "*"]'), 4, "methods.1: the row '*' is there twice", id="all twice"),
        pytest.param(
            TABLE.replace(
                "[resnet8-resnet8]", "\n  - {id: p, teacher: a, student: b}\n  - {id: p, teacher: c, student: d}"
            ),
            5,
            "pairs.1: the pair 'p' is there twice",
            id="pair twice",
        ),
        pytest.param(
            TABLE.replace("[0]", "[0], methods: [{id: a, method: kd}, {id: a, method: at}]"),
            6,
            "presets.paper.methods.1: the row 'a' is there twice",
            id="row of a preset twice",
        ),
        pytest.param(TABLE + "quoted: {tdd: TDD, kd: KD}\n", 7, "quoted.kd: the row 'kd' is run", id="row and quoted"),
        pytest.param(TABLE.replace("  paper:", "  my short:"), 6, "presets.my short", id="preset that is no name"),
        pytest.param(TABLE.replace("  paper:", "  a/b:"), 6, "presets.a/b", id="preset that is a path"),
        pytest.param(TABLE + "tasks: [rte, rte]\n", 7, "tasks.1: the column 'rte'", id="column twice"),
        pytest.param(TABLE + "tasks: [rte, 'folder:/d/mean']\n", 7, "tasks.1: 'mean' is the column of", id="mean"),
        pytest.param(
            TABLE.replace("[0]", "[0], methods: [{id: a, method: kd, by_pair: {resnet8-resnte8: {temperature: 2.0}}}]"),
            6,
            "presets.paper.methods: no pair of the table: resnet8-resnte8",
            id="no pair of a preset's row",
        ),
        pytest.param(
            TABLE.replace("[resnet8-resnet8]", "[{id: p, teacher: a, student: b, task: rte}]") + "tasks: [mrpc]\n",
            3,
            "pairs: p: a pair has no task of its own where the table names tasks",
            id="two tasks in a column",
        ),
        pytest.param(TABLE.replace("[0]", "[1, 0, 1]"), 6, "presets.paper.seeds.2: the seed '1'", id="seed twice"),
        pytest.param(TABLE.replace("[0]", "[-1]"), 6, "presets.paper.seeds.0", id="negative seed"),
        pytest.param(TABLE.replace("[0]", "[4294967296]"), 6, "presets.paper.seeds.0", id="huge seed"),
        pytest.param(TABLE.replace("[0]", "[]"), 6, "presets.paper.seeds: at least 1 needed", id="no seeds"),
        pytest.param(TABLE.replace("[kd]", "[]"), 4, "methods: at least 1 needed", id="no rows"),
        pytest.param(TABLE.replace("[resnet8-resnet8]", "[]"), 3, "pairs: at least 1 needed", id="no columns"),
        pytest.param(TABLE.replace("[0]", "[0], pairs: []"), 6, "presets.paper.pairs: at least 1", id="no own columns"),
        pytest.param(
            TABLE.replace("\n  paper: {protocol: digits-demo, seeds: [0]}", " {}"), 5, "presets", id="no presets"
        ),
        pytest.param(TABLE + "published: cifar10.csv\n", 7, "did you mean cifar100.csv", id="no published values"),
        pytest.param(
            TABLE.replace("digits-demo", "digit-demo"),
            6,
            "presets.paper.protocol: unknown protocol 'digit-demo'; did you mean digits-demo",
            id="no protocol",
        ),
        pytest.param(
            TABLE.replace("digits-demo", "mine.yaml"),
            6,
            "presets.paper.protocol: unknown protocol 'mine.yaml'",
            id="no own protocol",
        ),
        pytest.param(
            "extends: tabel1\n" + TABLE, 1, "extends: unknown table 'tabel1'; did you mean table1", id="extends"
        ),
        pytest.param(
            TABLE.replace('"My table"', "2024-01-01"),
            2,
            "title: Input should be a valid string; put it in quotes",
            id="date",
        ),
        pytest.param("", 1, "mapping", id="empty"),
    ],
)
def test_a_wrong_table_is_one_line_with_its_place(tmp_path: Path, text: str, line: int, words: str) -> None:
    refused = message(load_table, tmp_path / "t.yaml", text)
    assert f"line {line}" in refused and words in refused


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        pytest.param(PROTOCOL + "milestones: [1, 2\nflip: true\n", 6, "", id="malformed"),
        pytest.param(PROTOCOL + "\tflip: true\n", 5, "", id="tab"),
        pytest.param(PROTOCOL + "epoch: 3\n", 5, "epoch: unknown key", id="unknown key"),
        pytest.param(PROTOCOL.replace("4", "on"), 4, "epochs: Input should be a number; YAML reads yes", id="on"),
        pytest.param(PROTOCOL + "optimizer: {lr: true}\n", 5, "optimizer.lr: Input should be a number", id="true"),
        pytest.param(
            PROTOCOL + "milestones: [1, yes]\n", 5, "milestones.1: Input should be a number", id="yes in a list"
        ),
        pytest.param(
            PROTOCOL + "lr_by_student: {resnet8: on}\n", 5, "lr_by_student.resnet8: Input should", id="on for a key"
        ),
        pytest.param(PROTOCOL.replace("4", "four"), 4, "epochs", id="wrong type"),
        pytest.param(PROTOCOL.replace("4", "0"), 4, "epochs", id="out of range"),
        pytest.param(PROTOCOL + "optimizer:\n  lr: 0.1\n  momentun: 0.9\n", 7, "optimizer.momentun", id="nested"),
        pytest.param(PROTOCOL + "optimizer: {lr: .inf}\n", 5, "optimizer.lr", id="infinite"),
        pytest.param(PROTOCOL + "optimizer: {lr: 1, weight_decay: -5e-4}\n", 5, "optimizer.weight_decay", id="decay"),
        pytest.param(PROTOCOL + "decay: -0.1\n", 5, "decay: Input should be greater than 0", id="factor"),
        pytest.param(
            PROTOCOL + "lr_by_student: {resnet8: 0}\n", 5, "lr_by_student.resnet8: Input should be greater", id="rate"
        ),
        pytest.param(
            PROTOCOL + "mean: [125.3, 123.0, 113.9]\n",
            5,
            "mean.0: mean and std are of images scaled to 0 to 1",
            id="mean of 255",
        ),
        pytest.param(
            PROTOCOL + "std:\n  - 0.5\n  - 63.0\n  - 0.5\n", 7, "std.1: mean and std are of images", id="std of 255"
        ),
        pytest.param(PROTOCOL + "std: [0.5, 0.0, 0.5]\n", 5, "std.1: Input should be greater than 0", id="std 0"),
        pytest.param(
            PROTOCOL + "std: [-0.5, 0.5, 0.5]\n", 5, "std.0: Input should be greater than 0", id="std below 0"
        ),
        pytest.param(PROTOCOL + "mean: [-0.5, 0.5, 0.5]\n", 5, "mean.0", id="mean below 0"),
        pytest.param(PROTOCOL + "mean: [0.5]\n", 5, "mean: three channels", id="grey"),
        pytest.param(PROTOCOL + "mean: []\n", 5, "mean: mean and std belong together", id="std alone"),
        pytest.param(PROTOCOL + "crop_padding: -3\n", 5, "crop_padding", id="negative padding"),
        pytest.param(
            PROTOCOL + "milestones: [150, 240]\n",
            5,
            "milestones.1: 240 is not within the recipe's 240 epochs",
            id="late milestone",
        ),
        pytest.param(PROTOCOL.replace("4", "1000000000"), 4, "epochs: Input should be less than", id="too long"),
        pytest.param(PROTOCOL + "batch_size: 99999999999999999999\n", 5, "batch_size", id="too large"),
        pytest.param(PROTOCOL + "crops: {workers: 1000000}\n", 5, "crops.workers", id="too many processes"),
        pytest.param(PROTOCOL + "crops: {size: 1000000}\n", 5, "crops.size", id="too large images"),
        pytest.param(PROTOCOL + "crops: {size: 64, test_resize: 32}\n", 5, "test_resize >= size", id="black borders"),
        pytest.param(
            PROTOCOL + "crops: {scale: [0.5, 0.1]}\n", 5, "crops: scale is the smallest and the largest", id="scale"
        ),
        pytest.param(
            PROTOCOL + "teachers_from: digits-dem\n",
            5,
            "teachers_from: unknown protocol 'digits-dem'; did you mean digits-demo",
            id="no protocol",
        ),
        pytest.param(
            PROTOCOL + "optimizer: {name: dot, lr: 1, delta: 0.05}\nprecision: fp16\n",
            5,
            "optimizer: dot has two kinds of gradients, which are not scaled",
            id="dot in fp16",
        ),
    ],
)
def test_a_wrong_protocol_is_one_line_with_its_place(tmp_path: Path, text: str, line: int, words: str) -> None:
    refused = message(load_protocol, tmp_path / "p.yaml", text)
    assert f"line {line}" in refused and words in refused


def test_extending_what_does_not_exist_says_so(tmp_path: Path) -> None:
    assert "'digits-dem'" in message(load_protocol, tmp_path / "p.yaml", PROTOCOL.replace("digits-demo", "digits-dem"))


def test_text_that_is_no_utf8_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_table(str(path))


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda: load_table("tabel2"), "table2"),
        (lambda: load_protocol("cifar100-crd420"), "cifar100-crd240"),
        (lambda: load_table("table1").preset("papper"), "paper"),
        (lambda: load_table("nowhere/mine.yaml"), "nowhere/mine.yaml"),
    ],
)
def test_unknown_names_get_their_neighbours(call: Callable[[], object], near: str) -> None:
    with pytest.raises(UserError, match=near):
        call()


def test_a_table_is_frozen() -> None:
    table = load_table("table1")
    assert isinstance(table, TableSpec)
    with pytest.raises(ValueError, match="frozen"):
        table.name = "other"


def test_columns_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(TABLE + 'tasks: ["folder:/a/birds", "folder:/b/birds/", "folder:/b/fish", glue/rte]\n')
    columns = load_table(str(path)).preset("paper").pairs or ()
    assert [pair.id.partition(":")[2] for pair in columns] == ["a/birds", "b/birds", "fish", "rte"]


def test_files_that_extend_each_other_in_a_circle_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_spec, "TABLE_FILES", Shelf("table", tmp_path))
    for name, other in (("one", "two"), ("two", "one"), ("same", "same")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {other}\nname: {name}\n")
    for name, last in (("one", "two"), ("two", "one"), ("same", "same")):
        with pytest.raises(UserError, match=rf"{last}\.yaml line 1: extends: '{name}' extends this file in turn"):
            load_table(name)


def test_columns_of_folders_have_names_without_the_way_to_them() -> None:
    """What names them is a part of files' names and of archives, which take no way out of their folder."""
    tasks = [TaskColumn(task=task) for task in ("folder:../birds", "folder:birds", "folder:../../fish/")]
    one, two, three = labels(tasks)
    assert one != two and three == "fish" and not any(".." in label for label in (one, two, three))
    assert one.endswith("/birds") and two.endswith("/birds")
