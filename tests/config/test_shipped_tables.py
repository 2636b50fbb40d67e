"""The tables that ship and what is published for them, against the literature's own figures."""

from __future__ import annotations

import csv
import re

import pytest
from helpers.tables import methods_of_tables

from benchmarks import networks
from benchmarks.common.places import PUBLISHED, TABLES
from benchmarks.config.protocol import load_protocol, protocol_names
from benchmarks.config.published import all_pair_settings, literature, pair_settings
from benchmarks.config.table_spec import load_table, table_names
from kd_methods import registry

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
    assert not table.published or literature(table.published), "every line is read"


DATA = {
    "CIFAR-100": ["cifar100"], "CIFAR-10": ["cifar10"], "Tiny-ImageNet": ["tiny-imagenet"], "ImageNet": ["imagenet"],
    "digits": ["digits", "digits32"], "COCO": ["coco"], "GLUE": [],
}  # fmt: skip
"""Data sets by what titles call them; of GLUE there are many tasks, which their columns name."""


@pytest.mark.parametrize("name", table_names())
def test_a_title_names_the_data_that_is_trained_on(name: str) -> None:
    table = load_table(name)
    for preset_name in table.presets:
        preset = table.preset(preset_name)
        usual = preset.task or load_protocol(preset.protocol).task
        tasks = {pair.task or usual for pair in preset.pairs or ()}
        title = preset.title or table.title
        for word in sorted(DATA, key=len, reverse=True):
            if word in title and "demonstration of" not in title:
                assert tasks <= {*DATA[word]} or (word == "GLUE" and all(task.startswith("glue/") for task in tasks)), (
                    preset_name, title, tasks)  # fmt: skip
                title = title.replace(word, "")
        assert preset_name != "demo" or not tasks & {"digits", "digits32"} or "digits" in (preset.title or table.title)


@pytest.mark.parametrize("name", table_names())
def test_the_networks_of_every_table_exist(name: str) -> None:
    table = load_table(name)
    pairs = [pair for preset in table.presets for pair in table.preset(preset).pairs or ()]
    for network in {name for pair in pairs for name in (pair.teacher, pair.student)}:
        networks.check(network)


def test_networks_for_another_image_size_have_the_rates_of_their_kind() -> None:
    for name in table_names():
        table = load_table(name)
        for preset in table.presets:
            rates = load_protocol(table.preset(preset).protocol).lr_by_student
            used = {network for pair in table.preset(preset).pairs or () for network in (pair.teacher, pair.student)}
            missing = {network for network in used if re.sub(r"_p\d+$", "", network) in rates and network not in rates}
            assert not missing, (name, preset)


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


def test_every_method_is_a_row_of_some_table() -> None:
    rows = {name for method in methods_of_tables() for name in registry.plain_methods(method)}
    assert rows == set(registry.index())


def test_a_variant_has_its_methods_recipe() -> None:
    assert registry.index()["mlld.paper"].recipe == "cifar100-mlld" == registry.card("crd+mlld").recipe
    assert {e.name: e.recipe for e in registry.index().values()} == {
        name: registry.card(name).recipe for name in registry.available() if name in registry.index()
    }


def test_settings_of_tiny_imagenet_hold_under_each_of_its_protocols() -> None:
    """50 images per class for the spectra of CNNs, whatever variant of the recipe."""
    names = [
        name for name in protocol_names() if name.startswith("tiny-imagenet-feature-only") and "teachers" not in name
    ]
    recipes = {load_protocol(name).recipe for name in names if not name.endswith("-240")}  # where nothing is chosen
    assert len(recipes) >= 5
    for recipe in recipes:
        assert pair_settings("feature_only", "ResNet34-ResNet9", recipe) == {"per_class": 50}, recipe


def test_two_views_never_stand_beside_the_papers_recipe() -> None:
    for name in table_names():
        for preset_name in load_table(name).presets:
            preset = load_table(name).preset(preset_name)
            views = load_protocol(preset.protocol).views
            assert all(registry.get(row.method).needs.views <= views for row in preset.methods or ())
    assert load_protocol("cifar100-mlld").recipe != "cifar100-crd240"


def test_a_demo_is_large_enough_to_show_something() -> None:
    for name in ("table1", "table2"):  # five minutes on two cores: not every method
        demo = load_table(name).preset("demo")
        assert len(demo.pairs or ()) >= 2 and len(demo.methods or ()) >= 6 and len(demo.seeds) >= 3
        assert load_protocol(demo.protocol).task == "digits" and demo.notes


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
    named_pairs = {name for pair in pairs for name in pair.id.split("-")}
    for method, entries in all_pair_settings().items():
        assert registry.exists(method)
        named = [(entry.recipe, pair) for entry in entries for pair in entry.pairs or ("all",)]
        assert len(named) == len(set(named)), f"{method}: a pair has two settings"
        for entry in entries:
            registry.settings(method, entry.values)
            assert {entry.recipe, *entry.also} <= set(protocol_names()) and entry.source
            assert not isinstance(entry.our_choice, tuple) or entry.chosen() == set(entry.our_choice)
            assert {name for pair in entry.pairs for name in pair.split("-")} <= {*networks.names(), *named_pairs}


def test_a_paper_has_one_entry_and_each_is_closed() -> None:
    text = (TABLES / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{([^,\s]+),", text, flags=re.MULTILINE)
    assert keys and len(keys) == len(set(keys)) and text.count("{") == text.count("}")


def test_published_values_are_well_formed() -> None:
    lines = published()
    assert lines and set(lines[0]) == {
        "method", "pair", "value", "std", "source", "epoch_rule", "protocol", "teacher", "note"
    }  # fmt: skip
    for line in lines:
        assert None not in line, f"too many fields: {line}"
        assert 40 < float(line["value"]) < 90 and (not line["std"] or 0 < float(line["std"]) < 2), line
        assert line["epoch_rule"] in ("last", "best", "unknown") and line["source"] and line["teacher"], line
        assert line["protocol"], line
        assert line["pair"].count("-") == 1 and line["method"] == line["method"].strip().lower()
        if "RepDistiller" in line["source"]:
            assert line["epoch_rule"] == "last"
        if "mdistiller" in line["source"]:
            assert line["epoch_rule"] == "best"
    keys = [(line["method"], line["pair"], line["source"]) for line in lines]
    assert len(keys) == len(set(keys)), sorted({key for key in keys if keys.count(key) > 1})


def test_a_quoted_value_has_the_epoch_rule_of_where_it_is_from() -> None:
    rules = dict[tuple[str, str, float], set[str]]()
    for line in published():
        rules.setdefault((line["method"], line["pair"], float(line["value"])), set()).add(line["epoch_rule"])
    both = {place for place, known in rules.items() if {"last", "best"} <= known}
    assert not both
    evidence = (PUBLISHED / "README.md").read_text()
    for line in published():
        assert line["source"].split(" ")[0] in evidence, f"{line['source']}: what settles its rule?"


@pytest.mark.parametrize("pair", [*SAME_FAMILY, *CROSS_FAMILY])
def test_published_values_cover_the_tables(pair: str) -> None:
    source = "HobbitLong/RepDistiller"
    covered = {line["method"] for line in published() if line["pair"] == pair and source in line["source"]}
    assert {"teacher", "student", "kd", "fitnet", "at", "sp", "pkt", "rkd"} <= covered


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
    """As the tables in the READMEs of RepDistiller and mdistiller have them."""
    place = (method, pair)
    values = [
        line for line in published() if (line["method"], line["pair"]) == place and f"/{source} " in line["source"]
    ]
    assert [float(line["value"]) for line in values] == [value]
    assert (values[0]["protocol"], values[0]["teacher"]) == ("cifar100-crd240", "crd")


def test_every_published_value_stands_in_some_table() -> None:
    shown: dict[str, set[tuple[str, str]]] = {}
    for table in map(load_table, table_names()):
        for preset in map(table.preset, table.presets):
            rows = {row.published or row.method for row in preset.methods or ()} | {"teacher", *table.quoted}
            places = {(row, pair.id) for row in rows for pair in preset.pairs or ()}
            shown.setdefault(table.published, set()).update(places)
    for name in filter(None, shown):
        absent = {(line.method, line.pair) for line in literature(name)} - shown[name]
        assert not absent, (name, sorted(absent))


def test_no_published_block_kd() -> None:
    """Of Block-KD (arXiv 2411.01547) none could be found, so none may be claimed."""
    assert not [line for line in published() if line["method"].startswith("block")]


def test_every_way_to_train_with_stones_is_a_row() -> None:
    rows = {row.id: row for row in load_table("block-kd-ablation").methods if row.method == "block_kd"}
    settings = {(key, str(value)) for row in rows.values() for key, value in row.settings.items()}
    assert {
        ("stone_schedule", "deep_first"), ("stone_schedule", "shallow_first"), ("sample_stones", "2"),
        ("stone_weighting", "equal"), ("warmup", "20.0"), ("warmup_on", "beta_gamma"),
    } <= settings  # fmt: skip
    assert all(rows[name].our_choice for name in ("gradual-shallow", "sampled", "equal-weights", "warmup"))
