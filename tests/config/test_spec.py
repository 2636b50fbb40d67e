"""What ships in tables/ against the literature's own figures, and what a user's YAML may get wrong."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import networks
from benchmarks.common.places import TABLES
from benchmarks.common.yaml_files import read_yaml
from benchmarks.config.protocol import Protocol, load_protocol, protocol_names, steps_per_epoch
from benchmarks.config.schedules.onecycle import one_cycle
from benchmarks.config.table_spec import TableSpec, all_pair_settings, load_table, pair_settings, stem, table_names
from kd_methods import registry
from kd_methods.errors import UserError

SAME_FAMILY = [
    "resnet56-resnet20",
    "resnet110-resnet20",
    "resnet110-resnet32",
    "resnet32x4-resnet8x4",
    "wrn_40_2-wrn_16_2",
    "wrn_40_2-wrn_40_1",
    "vgg13-vgg8",
]
CROSS_FAMILY = [
    "vgg13-MobileNetV2",
    "ResNet50-MobileNetV2",
    "ResNet50-vgg8",
    "resnet32x4-ShuffleV1",
    "resnet32x4-ShuffleV2",
    "wrn_40_2-ShuffleV1",
]
TABLE = """\
name: mine
title: "My table"
pairs: [resnet8-resnet8]
methods: [kd]
presets:
  paper: {protocol: digits-demo, seeds: [0]}
"""
PROTOCOL = """\
extends: digits-demo
name: mine
version: 1
epochs: 4
"""


def message(load: Callable[[str], object], path: Path, text: str) -> str:
    """The one line with which a file is refused."""
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(str(path))
    line = str(caught.value)
    assert "\n" not in line and str(path) in line
    return line


def rate(protocol: Protocol, epoch: int, student: str) -> float:
    return protocol.lr(student) * protocol.lr_at(epoch)[0]


def published() -> list[dict[str, str]]:
    with (TABLES / "published" / "cifar100.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", table_names())
def test_every_shipped_table_loads_with_its_presets(name: str) -> None:
    table = load_table(name)
    assert table.name == name and {"paper", "short", "demo"} <= set(table.presets)
    for preset_name in table.presets:
        preset = table.preset(preset_name)
        assert preset.pairs and preset.methods and preset.seeds
        assert load_protocol(preset.protocol).name == preset.protocol
        assert all(registry.exists(row.method) for row in preset.methods)
        for row in preset.methods:
            registry.settings(row.method, row.settings)
            load_protocol(preset.protocol).with_optimizer(row.optimizer)
        for ids in ([pair.id for pair in preset.pairs], [row.id for row in preset.methods]):
            assert len(ids) == len(set(ids))
    assert not table.published or (TABLES / "published" / table.published).is_file()


@pytest.mark.parametrize("name", table_names())
def test_the_networks_of_every_table_exist(name: str) -> None:
    table = load_table(name)
    pairs = [pair for preset in table.presets for pair in table.preset(preset).pairs or ()]
    for network in {name for pair in pairs for name in (pair.teacher, pair.student)}:
        networks.check(network)


def test_there_are_the_three_protocols_and_each_loads() -> None:
    assert {"cifar100-crd240", "cifar100-short", "digits-demo"} <= set(protocol_names())
    for name in protocol_names():
        protocol = load_protocol(name)
        assert protocol.name == name and protocol.version >= 1 and protocol.source


def test_the_papers_protocol_has_the_papers_values() -> None:
    """specs/inventory.md section 2: the CRD / mdistiller recipe."""
    protocol = load_protocol("cifar100-crd240")
    assert (protocol.task, protocol.epochs, protocol.batch_size, protocol.drop_last) == ("cifar100", 240, 64, False)
    optimizer = protocol.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.05, 0.9, False, 5e-4)
    assert protocol.lr_by_student == {"MobileNetV2": 0.01, "ShuffleV1": 0.01, "ShuffleV2": 0.01}
    assert (protocol.milestones, protocol.decay) == ((150, 180, 210), 0.1)
    assert (protocol.crop_padding, protocol.flip, protocol.holdout) == (4, True, 0)
    assert (protocol.mean, protocol.std) == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    assert protocol.deviations == () and protocol.recipe == "cifar100-crd240"
    assert steps_per_epoch(50_000, protocol) == 782


def test_the_learning_rate_falls_after_the_milestone_epoch() -> None:
    """``epoch > milestone`` with epochs counted from 1: the 150th epoch is the last at the full rate."""
    protocol = load_protocol("cifar100-crd240")
    expected = {1: 0.05, 150: 0.05, 151: 0.005, 180: 0.005, 181: 5e-4, 210: 5e-4, 211: 5e-5, 240: 5e-5}
    for epoch, value in expected.items():
        assert protocol.lr("resnet20") * protocol.lr_at(epoch)[0] == pytest.approx(value), epoch
    assert [protocol.lr(name) for name in ("ShuffleV1", "ShuffleV2", "MobileNetV2")] == [0.01] * 3


def test_another_length_scales_the_milestones() -> None:
    paper = load_protocol("cifar100-crd240")
    tenth = paper.changed(epochs=24)
    rates = [0.05 * tenth.lr_at(epoch)[0] for epoch in (15, 16, 18, 19, 21, 22)]
    assert rates == pytest.approx([0.05, 0.005, 0.005, 5e-4, 5e-4, 5e-5])
    assert (tenth.recipe_epoch(12), tenth.recipe_epochs, tenth.epochs) == (120, 240, 24)
    assert tenth.deviations == ("24 epochs instead of 240, milestones scaled",)
    assert "24 epochs" in tenth.lines()[0] and "after epochs 15, 18, 21" in tenth.lines()[1]
    assert paper.changed(epochs=240) is paper and paper.changed() is paper
    with pytest.raises(UserError, match="at least 1"):
        paper.changed(epochs=0)


def test_the_short_protocol_is_the_papers_in_ten_epochs() -> None:
    short, paper = load_protocol("cifar100-short"), load_protocol("cifar100-crd240")
    assert (short.epochs, short.recipe_epochs, short.recipe) == (10, 240, "cifar100-crd240")
    assert [0.05 * short.lr_at(epoch)[0] for epoch in (7, 8, 9, 10)] == pytest.approx([0.05, 0.005, 5e-4, 5e-5])
    assert short.deviations, "a shortened recipe must say so under the table"
    same = set(Protocol.model_fields) - {"name", "title", "epochs", "deviations", "version"}
    assert {key: getattr(short, key) for key in same} == {key: getattr(paper, key) for key in same}


def test_networks_for_another_image_size_have_the_rates_of_their_kind() -> None:
    for name in table_names():
        table = load_table(name)
        for preset in table.presets:
            rates = load_protocol(table.preset(preset).protocol).lr_by_student
            used = {network for pair in table.preset(preset).pairs or () for network in (pair.teacher, pair.student)}
            missing = {network for network in used if re.sub(r"_p\d+$", "", network) in rates and network not in rates}
            assert not missing, (name, preset)


def test_a_demo_on_digits_mirrors_nothing() -> None:
    demo = load_protocol("digits-demo")
    assert demo.task == "digits" and not demo.flip and demo.deviations


def test_holdout_is_a_deviation_and_shortens_the_epoch() -> None:
    split = load_protocol("cifar100-crd240").changed(holdout=5000)
    assert split.holdout == 5000 and "5000 held-out" in split.deviations[0]
    assert steps_per_epoch(50_000, split) == 704
    assert stem("t", "paper", load_protocol("cifar100-crd240"), split) == "t-paper-holdout5000"
    assert (
        stem("t", "paper", load_protocol("cifar100-crd240"), split.changed(epochs=3)) == "t-paper-epochs3-holdout5000"
    )


def test_identity_is_everything_but_the_texts() -> None:
    protocol = load_protocol("cifar100-crd240")
    texts = {"title": "x", "source": "y", "deviations": ("z",)}
    assert protocol.model_copy(update=texts).identity() == protocol.identity()
    changes = {"epochs": 239, "batch_size": 65, "version": 2, "holdout": 1, "flip": False, "mean": (0.5, 0.5, 0.5)}
    for key, value in changes.items():
        assert protocol.model_copy(update={key: value}).identity() != protocol.identity(), key


def test_table1_and_table2_have_the_pairs_of_the_literature() -> None:
    assert [pair.id for pair in load_table("table1").pairs] == SAME_FAMILY
    assert [pair.id for pair in load_table("table2").pairs] == CROSS_FAMILY
    rows = [row.id for row in load_table("table1").methods]
    assert rows[0] == "student" and len(rows) == len(set(rows)) and {"kd-dot", "kd@ls", "crd+kd"} <= set(rows)
    assert load_table("table2").methods == load_table("table1").methods


def test_tables_find_methods_through_the_registry() -> None:
    """Every method that shares the recipe is a row of tables 1 and 2; one with a recipe of its own never is."""
    rows = {row.method for row in load_table("table1").methods}
    for name in registry.index():
        card, views = registry.card(name), registry.get(name).needs.views
        assert (views > 1) <= bool(card.recipe) and (not card.recipe or card.recipe in protocol_names())
        if "." not in name:
            assert (name in rows) == (not card.recipe and card.modality in ("images", "any")), name
    assert {"mlld", "mlld.paper"} <= {row.method for row in load_table("mlld").methods}


def test_a_variant_has_its_methods_recipe() -> None:
    assert registry.index()["mlld.paper"].recipe == "cifar100-mlld" == registry.card("crd+mlld").recipe
    assert {e.name: e.recipe for e in registry.index().values()} == {
        name: registry.card(name).recipe for name in registry.available() if name in registry.index()
    }


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


def test_settings_of_tiny_imagenet_hold_under_each_of_its_protocols() -> None:
    """50 images per class for the spectra of CNNs, whatever variant of the recipe."""
    names = [
        name for name in protocol_names() if name.startswith("tiny-imagenet-feature-only") and "teachers" not in name
    ]
    recipes = {load_protocol(name).recipe for name in names if not name.endswith("-240")}  # where nothing is chosen
    assert len(recipes) >= 5
    for recipe in recipes:
        assert pair_settings("feature_only", "ResNet34-ResNet9", recipe) == {"per_class": 50}, recipe


def test_an_optimiser_of_a_row_has_to_fit_the_protocol() -> None:
    nesterov = Protocol.model_validate(
        {**load_protocol("digits-demo").model_dump(), "optimizer": {"lr": 0.1, "nesterov": True}}
    )
    with pytest.raises(UserError, match="dot needs delta > 0"):
        nesterov.with_optimizer({"name": "dot", "delta": 0.05})
    dot = load_protocol("digits-demo").with_optimizer({"name": "dot", "delta": 0.05})
    assert dot.with_optimizer({"delta": 0.09}).optimizer.delta == 0.09 and dot.optimizer.lr == 0.05


def test_two_views_never_stand_beside_the_papers_recipe() -> None:
    for name in table_names():
        for preset_name in load_table(name).presets:
            preset = load_table(name).preset(preset_name)
            views = load_protocol(preset.protocol).views
            assert all(registry.get(row.method).needs.views <= views for row in preset.methods or ())
    assert load_protocol("cifar100-mlld").recipe != "cifar100-crd240"


def test_a_demo_is_large_enough_to_show_something() -> None:
    """Issue 2: at least 3 pairs x 8 methods x 2 seeds."""
    for name in ("table1", "table2"):  # minutes on a laptop: not every method
        demo = load_table(name).preset("demo")
        assert len(demo.pairs or ()) >= 3 and len(demo.methods or ()) >= 8 and len(demo.seeds) >= 2
        assert load_protocol(demo.protocol).task == "digits" and demo.notes


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


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        pytest.param(TABLE.replace("[kd]", "[kd"), 5, "", id="malformed"),
        pytest.param(TABLE + "colour: red\n", 7, "colour: unknown key", id="unknown key"),
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
        pytest.param(TABLE + "tasks: [glue/rte, rte]\n", 7, "tasks.1: the column 'rte'", id="column twice"),
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


@pytest.mark.parametrize(
    ("pair", "beta"),
    [
        ("resnet56-resnet20", 2.0),
        ("resnet110-resnet32", 2.0),
        ("resnet32x4-resnet8x4", 8.0),
        ("wrn_40_2-wrn_16_2", 6.0),
        ("wrn_40_2-wrn_40_1", 6.0),
        ("vgg13-vgg8", 6.0),
        ("vgg13-MobileNetV2", 6.0),
        ("ResNet50-MobileNetV2", 8.0),
        ("resnet32x4-ShuffleV1", 8.0),
        ("resnet32x4-ShuffleV2", 8.0),
        ("wrn_40_2-ShuffleV1", 8.0),
    ],
)
def test_dkd_takes_the_published_beta_of_a_pair(pair: str, beta: float) -> None:
    settings = registry.settings("dkd", dict(pair_settings("dkd", pair, "cifar100-crd240")))
    assert settings.beta == beta and (settings.alpha, settings.temperature, settings.warmup) == (1.0, 4.0, 20.0)


def test_published_settings_belong_to_their_recipe_and_method() -> None:
    assert pair_settings("dkd", "resnet56-resnet20", "cifar100-mlld") == {}
    assert pair_settings("dkd", "resnet56-resnet20", "cifar100-letkd") == {"beta": 2.0}  # quoted there as it was
    assert pair_settings("kd", "resnet56-resnet20", "cifar100-crd240") == {}


def test_published_settings_exist_in_the_registry() -> None:
    matrices = [m for table in map(load_table, table_names()) for m in (table, *table.presets.values())]
    pairs = [pair for matrix in matrices for pair in matrix.pairs or () if pair.id != f"{pair.teacher}-{pair.student}"]
    named_pairs = {part for pair in pairs for part in pair.id.split("-")}
    for method, entries in all_pair_settings().items():
        assert registry.exists(method)
        named = [(entry.recipe, pair) for entry in entries for pair in entry.pairs or ("all",)]
        assert len(named) == len(set(named)), f"{method}: a pair has two settings"
        for entry in entries:
            registry.settings(method, entry.values)
            assert entry.recipe in protocol_names() and entry.source
            assert {name for pair in entry.pairs for name in pair.split("-")} <= {*networks.names(), *named_pairs}


def test_every_shipped_method_can_be_cited() -> None:
    text = (TABLES / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{([^,\s]+),", text, flags=re.MULTILINE)
    assert len(keys) == len(set(keys)) and text.count("{") == text.count("}")
    for name, entry in registry.index().items():
        card = registry.card(name)
        assert card.title and card.title == entry.title and card.family == entry.family and card.version >= 1
        assert card.paper in keys or name == "student", name


def test_our_choices_are_settings() -> None:
    for name in registry.available():
        assert set(registry.card(name).our_choice) <= set(registry.get(name).Settings.model_fields), name


def test_published_values_are_well_formed() -> None:
    lines = published()
    assert lines and set(lines[0]) == {
        "method", "pair", "value", "std", "source", "epoch_rule", "protocol", "teacher", "note"
    }  # fmt: skip
    for line in lines:
        assert None not in line, f"too many fields: {line}"
        assert 40 < float(line["value"]) < 90 and (not line["std"] or 0 < float(line["std"]) < 2), line
        assert line["epoch_rule"] in ("last", "best", "unknown") and line["source"] and line["teacher"], line
        assert line["pair"].count("-") == 1 and line["method"] == line["method"].strip().lower()
        if "RepDistiller" in line["source"]:
            assert line["epoch_rule"] == "last"
        if "mdistiller" in line["source"]:
            assert line["epoch_rule"] == "best"
    keys = [(line["method"], line["pair"], line["source"]) for line in lines]
    assert len(keys) == len(set(keys)), sorted({key for key in keys if keys.count(key) > 1})


@pytest.mark.parametrize("pair", [*SAME_FAMILY, *CROSS_FAMILY])
def test_published_values_cover_the_tables(pair: str) -> None:
    source = "HobbitLong/RepDistiller"
    found = {line["method"] for line in published() if line["pair"] == pair and source in line["source"]}
    assert {"teacher", "student", "kd", "fitnet", "at", "sp", "pkt", "rkd"} <= found


@pytest.mark.parametrize(
    ("method", "pair", "source", "value"),
    [
        ("teacher", "resnet32x4-resnet8x4", "RepDistiller", 79.42),
        ("student", "ResNet50-vgg8", "RepDistiller", 70.36),
        ("kd", "resnet56-resnet20", "RepDistiller", 70.66),
        ("kd", "vgg13-MobileNetV2", "RepDistiller", 67.37),
        ("at", "ResNet50-MobileNetV2", "RepDistiller", 58.58),
        ("fitnet", "ResNet50-MobileNetV2", "RepDistiller", 63.16),
        ("pkt", "resnet110-resnet32", "RepDistiller", 72.61),
        ("rkd", "vgg13-vgg8", "RepDistiller", 71.48),
        ("sp", "wrn_40_2-ShuffleV1", "RepDistiller", 74.52),
        ("crd", "wrn_40_2-wrn_16_2", "RepDistiller", 75.48),
        ("dkd", "resnet56-resnet20", "mdistiller", 71.97),
        ("dkd", "wrn_40_2-wrn_16_2", "mdistiller", 76.23),
        ("dkd", "resnet32x4-ShuffleV2", "mdistiller", 77.07),
    ],
)
def test_published_values_are_those_of_the_sources(method: str, pair: str, source: str, value: float) -> None:
    """Figures of specs/published_numbers.md, sections 1.1 and 1.2."""
    place = (method, pair)
    found = [
        line for line in published() if (line["method"], line["pair"]) == place and f"/{source} " in line["source"]
    ]
    assert [float(line["value"]) for line in found] == [value]
    assert (found[0]["protocol"], found[0]["teacher"]) == ("cifar100-crd240", "crd")


def test_no_published_block_kd() -> None:
    """specs/published_numbers.md: none could be found, so none may be claimed."""
    assert not [line for line in published() if line["method"].startswith("block")]


def test_a_table_is_frozen() -> None:
    table = load_table("table1")
    assert isinstance(table, TableSpec)
    with pytest.raises(ValueError, match="frozen"):
        table.name = "other"


def test_one_cycle_is_torchs() -> None:
    total, parameter = 157, torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.0075, total_steps=total)
    for step in range(total):
        factor, momentum = one_cycle(step, total)
        assert 0.0075 * factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        assert momentum == pytest.approx(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        if step + 1 < total:
            schedule.step()


def test_feature_only_kds_cycle_is_its_codes() -> None:
    """50 epochs of 391 steps, of which 390 are run: the last rates are cut off."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.0075, epochs=50, steps_per_epoch=int(50_000 / 128 + 1))
    protocol, steps = load_protocol("cifar100-feature-only"), 50_000 // 128
    for done in range(50 * steps):
        if done % 997 == 0 or done > 50 * steps - 5:
            factor, momentum = protocol.lr_at(1 + done // steps, done, protocol.epochs * steps)
            assert 0.0075 * factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
            assert momentum == pytest.approx(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        theirs.step()
    assert factor > 3e-5, "the end of the cycle would be 4e-6"
    with pytest.raises(ValueError, match="for schedule onecycle with drop_last"):
        Protocol.model_validate({**load_protocol("digits-demo").model_dump(), "plan_dropped": True})


def test_settings_of_another_optimizer_are_errors() -> None:
    usual = load_protocol("digits-demo")
    for changes in ({"beta2": 0.9}, {"name": "adamw", "nesterov": True}, {"name": "adamw", "delta": 0.1}):
        with pytest.raises(UserError, match="under protocol digits-demo"):
            usual.with_optimizer(changes)
    with pytest.raises(UserError, match="one cycle moves the momentum"):
        load_protocol("digits-feature-only-demo").with_optimizer({"name": "dot", "delta": 0.05})
    assert usual.with_optimizer({"name": "adamw"}).optimizer.line() == "AdamW, beta2 0.999, weight decay 0.0005"
