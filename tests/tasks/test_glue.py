"""GLUE: the archives' files, columns, metrics, and a table of the real ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.real_data import VOCABULARY, RealData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.common.places import TABLES
from benchmarks.config.protocol import load_protocol
from benchmarks.config.table_spec import load_table
from benchmarks.tasks import get_task
from benchmarks.tasks.data_sets import glue
from kd_methods.errors import UserError

pytest.importorskip("transformers", reason="the extra [text] is not installed")
pytestmark = pytest.mark.usefixtures("offline")


FILES = {
    "CoLA": ('gj04\t1\t\tThe "sailors rode.\n', "gj04\t0\t*\tThe rode breeze.\n"),
    "SST-2": ("sentence\tlabel\nit 's \"a charming film \t1\n", "sentence\tlabel\ndull\t0\n"),
    "MRPC": (
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\tHe said "so.\tSo he said.\n',
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t72\t73\tA.\tB.\n",
    ),
    "STS-B": (
        "index\tsentence1\tsentence2\tscore\n0\tA plane.\tAn air plane.\t5.000\n",
        "index\tsentence1\tsentence2\tscore\n1\tA\tB\t0.5\n",
    ),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\tWhy so?\t1\n4\t5\t6\tbroken\n",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tHow?\tWho?\t0\n",
    ),
    "QNLI": (
        "index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tentailment\n",
        "index\tquestion\tsentence\tlabel\n0\tWho?\tIt rains.\tnot_entailment\n",
    ),
    "RTE": (
        "index\tsentence1\tsentence2\tlabel\n0\tIt rained.\tIt was wet.\tentailment\n",
        "index\tsentence1\tsentence2\tlabel\n0\tIt rained.\tIt was hot.\tnot_entailment\n",
    ),
    "WNLI": (
        "index\tsentence1\tsentence2\tlabel\n0\tA pin hit it: it burst.\tThe balloon burst.\t1\n",
        "index\tsentence1\tsentence2\tlabel\n0\tA pin hit it: it burst.\tThe pin burst.\t0\n",
    ),
}

LABELS = {**dict.fromkeys(FILES, ([1], [0])), "STS-B": ([5.0], [0.5]), "QNLI": ([0], [1]), "RTE": ([0], [1])}

NAMES = {source.folder: name for name, source in glue.SOURCES.items()}


@pytest.mark.parametrize("name", FILES)
def test_the_archives_files_with_their_quirks(name: str, tmp_path: Path):
    place = tmp_path / "glue" / name
    place.mkdir(parents=True)
    for split, content in zip(("train", "dev"), FILES[name], strict=True):
        (place / f"{split}.tsv").write_text(content, encoding="utf-8")
    task = get_task(f"glue/{NAMES[name]}")
    splits = glue.load(NAMES[name], tmp_path, False)
    assert tuple(list(splits[split].labels) for split in ("train", "test")) == LABELS[name]
    cells = FILES[name][0].rstrip("\n").split("\n")[0 if name == "CoLA" else 1].split("\t")
    assert splits["train"].first[0] in cells and all(second in cells for second in splits["train"].second)
    assert bool(splits["train"].second) == (name not in ("CoLA", "SST-2"))
    assert f"{task.name} has 1 rows of train, officially {task.official['train']}" in task.deviations(tmp_path)
    lines = FILES[name][1].rstrip("\n").split("\n")
    label = glue.SOURCES[NAMES[name]].label
    place_of = label if isinstance(label, int) else lines[0].split("\t").index(label)
    row = lines[-1].split("\t")
    row[place_of] = "7"
    (place / "dev.tsv").write_text("\n".join([*lines[:-1], "\t".join(row)]) + "\n")
    with pytest.raises(UserError, match=f"dev.tsv line {len(lines)}: '7' is no label"):
        glue.load(NAMES[name], tmp_path, False)
    (place / "dev.tsv").unlink()
    with pytest.raises(UserError, match="put the official file there"):
        glue.load(NAMES[name], tmp_path, False)


def test_a_lone_carriage_return_is_a_character(tmp_path: Path):
    (tmp_path / "SST-2").mkdir()
    for stem, end in (("train", "\n"), ("dev", "\r\n")):
        rows = ["sentence\tlabel", "good\rfilm\t1", 'bad\x85 "film\t0', "\r\t1"]
        (tmp_path / "SST-2" / f"{stem}.tsv").write_bytes(end.join([*rows, ""]).encode())
    for texts in glue.load("sst2", tmp_path, False).values():
        assert texts.first == ["good\rfilm", 'bad\x85 "film', "\r"] and texts.labels == [1, 0, 1]


TSV = (*("sentence", "label", "negative", "nan", "0", "1"), *("\t", "\n", "\r", '"', "\0", "\x85", "\u2028", "\ufeff"))


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    content=st.lists(st.sampled_from(TSV) | st.text(max_size=3), max_size=30).map("".join), headed=st.booleans(),
    cut=st.integers(0, 3), name=st.sampled_from(["sst2", "cola", "stsb", "qqp"]),
)  # fmt: skip
def test_any_tsv(content: str, headed: bool, cut: int, name: str, tmp_path: Path):
    """Texts come out as they are written, each with a label, or one line with the file."""
    source, path = glue.SOURCES[name], tmp_path / "x.tsv"
    head = "\t".join(str(column) for column in (source.first, source.second, source.label) if column) + "\n"
    encoded = ((head if headed else "") + content).encode(errors="replace")
    path.write_bytes(encoded[: len(encoded) - cut])
    try:
        texts = glue.read_tsv(source, path)
    except UserError as error:
        assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1
        return
    assert len(texts.first) == len(texts.labels) > 0 and len(texts.second) in (0, len(texts.first))
    assert all(text in path.read_text(encoding="utf-8", newline="") for text in texts.first)


def test_mnli_has_two_test_sets(tmp_path: Path):
    place = tmp_path / "MNLI"
    place.mkdir()
    for stem, label in (("train", "neutral"), ("dev_matched", "entailment"), ("dev_mismatched", "contradiction")):
        (place / f"{stem}.tsv").write_text(
            f"index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tA\tB\tneutral\t{label}\n"
        )
    splits = glue.load("mnli", tmp_path, False)
    assert {name: list(texts.labels) for name, texts in splits.items()} == {"train": [1], "test": [0], "test_mm": [2]}


def test_without_data_or_vocabulary_the_next_step_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"no SST-2 below .* --data-root"):
        glue.load("sst2", tmp_path, False)
    with pytest.raises(UserError, match=r"put BERT's vocab\.txt into"):
        get_task("glue/sst2").tokenizer(tmp_path, load_protocol("glue-ft"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"has no line \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        ("caf\u00e9".encode("latin-1"), "cannot be read"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n", "has the word 'a' twice"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_one_line(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"vocab\.txt {words}.*; put BERT's vocab\.txt there"):
        get_task("glue/sst2").tokenizer(tmp_path, load_protocol("glue-ft"))


def test_metrics_are_the_official_ones(tmp_path: Path):
    import evaluate

    from benchmarks.tasks.metrics import kd_glue

    for name, official in kd_glue.CONFIGS.items():
        others = [f"{metric}_mm" for metric in official if "test_mm" in glue.SOURCES[name].rows]
        task: Any = get_task(f"glue/{name}")
        assert task.metrics == (*official, *others) and task.metrics_held_out == official
    answers, truth = np.array([1, 0, 1, 1, 0, 0]), np.array([1, 0, 0, 1, 1, 0])
    assert glue.score("mrpc", answers, truth) == pytest.approx({"accuracy": 400 / 6, "f1": 200 / 3})
    assert glue.score("cola", answers, truth) == pytest.approx({"mcc": 100 / 3})
    values = np.array([1.0, 2.0, 4.5, 3.0]), np.array([0.5, 2.5, 5.0, 2.0])
    scores = glue.score("stsb", *values)
    assert scores["pearson"] == pytest.approx(100 * np.corrcoef(*values)[0, 1], abs=1e-3)
    assert scores["spearman"] == pytest.approx(100 * 0.8, abs=1e-3)
    assert glue.score("stsb", np.ones(4), values[1]) == {"pearson": 0.0, "spearman": 0.0}
    assert glue.score("mrpc", np.zeros(6), truth)["f1"] == 0
    loaded = evaluate.load(str(Path(kd_glue.__file__)), "sst2", cache_dir=str(tmp_path), keep_in_memory=True)
    assert loaded.compute(predictions=answers, references=truth) == pytest.approx({"accuracy": 4 / 6})


def test_columns_of_tasks():
    table = load_table("table5")
    columns = table.preset("paper").pairs
    assert columns is not None and len(columns) == 27
    assert [c.id for c in columns[:3]] == ["bert12-bert6:cola", "bert12-bert6:sst2", "bert12-bert6:mrpc"]
    assert {c.metric for c in columns} == {"", "accuracy_mm"}
    assert {c.id.partition(":")[0] for c in columns} == {"bert12-bert6", "bert12-bert3", "electra12-electra6"}
    published = {line["pair"] for line in _published()}
    assert published <= {c.id for c in columns}


def _published() -> list[dict[str, str]]:
    import csv

    with (TABLES / "published" / "glue.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.real_data
def test_real_glue_trains(real_data: RealData, tmp_path: Path):
    """The official files: row counts agree, a table of two tasks ends with their mean."""
    from click.testing import CliRunner

    from benchmarks.cli.main import cli

    root = real_data(VOCABULARY, *((name, f"glue/{name}") for name in ("CoLA", "SST-2", "MRPC", "STS-B")))
    for name, counts in (("cola", (8551, 1043)), ("sst2", (67349, 872)), ("mrpc", (3668, 408)), ("stsb", (5749, 1500))):
        task = get_task(f"glue/{name}")
        assert task.deviations(root) == ()
        assert tuple(len(texts.labels) for texts in task.read(root).values()) == counts
    pair = "bert_l4_h64-bert_l2_h64"
    arguments = [
        "table5",
        "--preset",
        "short",
        "--pairs",
        pair,
        "--seeds",
        "0",
        "--epochs",
        "1",
        "--methods",
        "student,kd",
    ]
    places = ["--data-root", str(root), "--output", str(tmp_path), "--no-cost", "--device", "cpu"]
    result = CliRunner().invoke(cli, [*arguments, *places])
    assert result.exit_code == 0, result.output
    rows = json.loads(next(tmp_path.rglob("plan.json")).read_text())["columns"]
    assert len(rows) == 4 and "mean" in next(tmp_path.rglob("table5.tex")).read_text()


HUB = {
    "cola": ("sentence",), "sst2": ("sentence",), "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"), "qqp": ("question1", "question2"), "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"), "rte": ("sentence1", "sentence2"), "wnli": ("sentence1", "sentence2"),
}  # fmt: skip
"""Columns of the texts in the hub's data sets, as transformers' own run_glue.py has them."""


@pytest.mark.parametrize("name", glue.SOURCES)
def test_the_hub_gives_every_task_its_texts_and_labels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = ("validation_matched", "validation_mismatched") if name == "mnli" else ("validation",)
    stored: dict[str, dict[str, list[Any]]] = {
        split: {column: [f"{split} {column} {row}" for row in (0, 1)] for column in HUB[name]}
        for split in ("train", *tests, "test")
    }
    for number, split in enumerate(stored):  # the labels of the hub's test set are not public: all are -1
        stored[split]["label"] = [-1, -1] if split == "test" else [number % 2, 1]
        stored[split]["idx"] = [0, 1]

    def load_dataset(path: str, config: str) -> dict[str, dict[str, list[Any]]]:
        assert (path, config) == ("nyu-mll/glue", name)
        return stored

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    splits = glue.load(name, tmp_path, True)
    assert list(splits) == ["train", "test", "test_mm"][: 1 + len(tests)]
    for texts, split in zip(splits.values(), ("train", *tests), strict=True):
        expected = [stored[split][column] for column in HUB[name]]
        assert [texts.first, texts.second or None] == [*expected, None][:2] and texts.labels == stored[split]["label"]


def test_whether_data_are_there_is_known_without_the_hub_s_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="no CoLA below"):
        get_task("glue/cola").samples(tmp_path, download=False)
