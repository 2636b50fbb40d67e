"""What a table rests on can be cited: every entry is there, and nothing is made up."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.cli.main import cli
from benchmarks.common.places import ROOT
from benchmarks.common.yaml_files import read_yaml
from benchmarks.config.protocol import load_protocol, protocol_names
from benchmarks.config.table_spec import load_table, table_names
from benchmarks.report import citations
from benchmarks.report.citations import bibliography, bibtex, cited, row_papers

OWN = ("grammar", "shapes")
"""Tasks that this suite makes up, of which there is no paper."""
LIBRARIES = {"wightman2019timm", "torchvision2016", "chen2019mmdetection"}
"""Cited for every network that they bring."""


def test_a_row_cites_its_method_modifiers_parts_and_optimiser() -> None:
    assert row_papers("kd") == ("hinton2015kd",) and row_papers("student") == ()
    assert row_papers("crd+kd@ls") == ("tian2020crd", "hinton2015kd", "sun2024ls")
    assert (
        row_papers("kd", "dot") == row_papers("kd", "DOT, delta 0.075, momentum 0.9") == ("hinton2015kd", "zhao2023dot")
    )
    assert row_papers("kd", "SGD, momentum 0.9") == ("hinton2015kd",) and not row_papers("of a plugin")


@pytest.mark.parametrize("name", table_names())
def test_whatever_a_shipped_table_names_has_an_entry(name: str) -> None:
    spec = load_table(name)
    for preset in map(spec.preset, spec.presets):
        protocol = load_protocol(preset.protocol)
        for row in preset.methods or ():
            keys = row_papers(row.method, str(row.optimizer.get("name", "")))
            assert (keys or row.method == "student") and set(keys) <= set(bibliography()), row
        for pair in preset.pairs or ():
            task = pair.task or preset.task or protocol.task
            assert cited((), [task], ()).tasks or task in OWN, task
            for network in (pair.teacher, pair.student):
                networks = cited((), (), [network]).networks
                assert set(networks) <= set(bibliography()), network
                of_tests = ":test_" in network  # timm's own, which stand for no architecture
                assert of_tests or set(networks) - LIBRARIES, (
                    f"nobody is cited for {network} but the library that has it"
                )


def test_every_paper_of_the_file_stands_for_something() -> None:
    known = citations._papers()
    assert {*known.tasks, *known.networks, *known.optimizers, *known.recipes} <= set(bibliography())
    for patterns in known.recipes.values():
        assert all(fnmatch.filter(protocol_names(), pattern) for pattern in patterns), patterns


def test_bibtex_of_a_table_is_whole_and_has_nothing_twice() -> None:
    text = bibtex(cited([("kd", ""), ("crd+kd", "")], ["cifar100"], ["resnet56", "resnet20", "wrn_40_2"]))
    keys = re.findall(r"^@\w+\{([^,\s]+),", text, flags=re.MULTILINE)
    assert keys == [
        "hinton2015kd", "tian2020crd", "krizhevsky2009cifar", "he2016resnet", "zagoruyko2016wrn", "kdbenchmark"
    ]  # fmt: skip
    assert text.count("{") == text.count("}")
    assert "missing" in citations.entry("nobody2000")


def test_a_table_cites_its_recipe_before_it_is_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["cite", "recipes", "--output", str(tmp_path)])
    assert result.exit_code == 0 and "{hao2023vanillakd," in result.output and "{you2019lamb," in result.output


def test_the_suite_is_cited_as_its_own_file_says() -> None:
    facts = read_yaml(ROOT / "CITATION.cff")
    entry = bibtex(cited((), (), ())).split("% this suite")[1]
    assert facts["title"] in entry and str(facts["version"]) in entry and facts["authors"][0]["name"] in entry
    assert f'version = "{facts["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not re.search(r"doi|http|year", entry), "there is none to give"
