"""The nine GLUE tasks, from the files of the official archive or from the hub."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from kd_methods.errors import UserError

from ...common.files import read_text
from ..base import NoData
from ..text import Texts, TextTask


@dataclass(frozen=True)
class Source:
    """How a task's files look.

    Args:
        folder: its name in the archive.
        first, second: columns of the texts by name, or by position where the files have no header.
        label: column of the label.
        labels: the classes in the official order; none for a regression.
        metric: the metric that tables show unless a table names another.
        counts: rows of the official train and test (the archive's dev) splits, and of the mismatched one.
    """

    folder: str
    first: str | int
    second: str | int | None
    label: str | int
    labels: tuple[str, ...]
    metric: str
    counts: tuple[int, ...]

    @property
    def rows(self) -> dict[str, int]:
        """Official rows by split."""
        return dict(zip(("train", "test", "test_mm"), self.counts, strict=False))


_ENTAILS = ("entailment", "not_entailment")

_NLI = ("sentence1", "sentence2")
_SAME = ("not_duplicate", "duplicate")
_THREE = ("entailment", "neutral", "contradiction")

SOURCES = {
    "cola": Source("CoLA", 3, None, 1, ("unacceptable", "acceptable"), "mcc", (8551, 1043)),
    "sst2": Source("SST-2", "sentence", None, "label", ("negative", "positive"), "accuracy", (67349, 872)),
    "mrpc": Source("MRPC", "#1 String", "#2 String", "Quality", ("not_equivalent", "equivalent"), "f1", (3668, 408)),
    "stsb": Source("STS-B", *_NLI, "score", (), "pearson", (5749, 1500)),
    "qqp": Source("QQP", "question1", "question2", "is_duplicate", _SAME, "f1", (363846, 40430)),
    "mnli": Source("MNLI", *_NLI, "gold_label", _THREE, "accuracy", (392702, 9815, 9832)),
    "qnli": Source("QNLI", "question", "sentence", "label", _ENTAILS, "accuracy", (104743, 5463)),
    "rte": Source("RTE", *_NLI, "label", _ENTAILS, "accuracy", (2490, 277)),
    "wnli": Source("WNLI", *_NLI, "label", ("not_entailment", "entailment"), "accuracy", (635, 71)),
}  # fmt: skip

DEV = {"test": ("dev", "dev_matched"), "test_mm": ("dev_mismatched",)}
"""What the archive calls the splits that we test on; the labels of its test sets are not public."""

HUB = {"train": "train", "test": "validation", "test_mm": "validation_mismatched"}
HUB_COLUMNS = {
    "sst2": ("sentence", None),
    "cola": ("sentence", None),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
}


def load(name: str, root: Path, download: bool) -> dict[str, Texts]:
    """A task's splits from ``root/<folder>`` or ``root/glue/<folder>``, else from the hub.

    Raises:
        UserError: neither is there, or a file is damaged (file and line are named).
    """
    source = SOURCES[name]
    places = (root / source.folder, root / "glue" / source.folder)
    folder = next((place for place in places if (place / "train.tsv").is_file()), None)
    if folder is None:
        return _hub(name, root, download)
    splits = {"train": read_tsv(source, folder / "train.tsv")}
    for split in source.rows:
        if split != "train":
            files = [folder / f"{stem}.tsv" for stem in DEV[split]]
            split_file = next((file for file in files if file.is_file()), None)
            if split_file is None:
                raise UserError(f"{files[0]} is missing; put the official file there")
            splits[split] = read_tsv(source, split_file)
    return splits


def read_tsv(source: Source, file: Path) -> Texts:
    """One file of the archive.

    Quotes and lone carriage returns are characters like others, a byte-order mark is none, rows may lack cells.

    Raises:
        UserError: a column is missing, a label is unknown, there are no rows, or the file is no text.
    """
    lines = read_text(file, remedy="fetch it again").split("\n")
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    columns = [source.first, source.second, source.label]
    header = rows.pop(0) if rows and isinstance(source.first, str) else []
    if missing := [name for name in columns if isinstance(name, str) and name not in header]:
        there = _shown(", ".join(header))
        raise UserError(f"{file} has no column '{missing[0]}' (there: {there}); is it {source.folder}'s?")
    places = [header.index(name) if isinstance(name, str) else name for name in columns]
    first, second, labels = [], [], []
    for number, row in enumerate(rows, 1 + bool(header)):
        if len(row) <= max(place for place in places if place is not None):
            continue  # QQP has three of them, which every reader leaves out
        first.append(row[places[0]])  # type: ignore[index]
        if places[1] is not None:
            second.append(row[places[1]])
        labels.append(_label(row[places[2]], source, file, number))  # type: ignore[index]
    if not labels:
        raise UserError(f"{file} has no rows; fetch it again")
    return Texts(first, second, labels)


def _label(text: str, source: Source, file: Path, line: int) -> float:
    if text in source.labels:
        return source.labels.index(text)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not source.labels and 0 <= value <= 5:
        return value
    if source.labels and value in range(len(source.labels)):
        return int(value)
    raise UserError(f"{file} line {line}: '{_shown(text)}' is no label of {source.folder}")


def _shown(text: str) -> str:
    """What a file holds, as a part of one line."""
    return repr(text)[1:-1][:100]


def _hub(name: str, root: Path, download: bool) -> dict[str, Texts]:
    source = SOURCES[name]
    remedy = f"put the folder {source.folder} with train.tsv and dev.tsv there, or name its parent with --data-root"
    if not download:
        raise NoData(f"no {source.folder} below {root}; {remedy}")
    from datasets import load_dataset

    try:
        data = load_dataset("nyu-mll/glue", name)
    except Exception as error:  # whatever the library, its file systems and the network raise
        reason = f"the hub does not give it ({type(error).__name__})"
        raise NoData(f"no {source.folder} below {root} and {reason}; {remedy}") from None
    first, second = HUB_COLUMNS.get(name, ("sentence1", "sentence2"))
    splits = {}
    for split in source.rows:
        stored = HUB[split] + ("_matched" if name == "mnli" and split == "test" else "")
        rows = data[stored]
        splits[split] = Texts(list(rows[first]), list(rows[second]) if second else (), list(rows["label"]))
    return splits


def score(name: str, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The task's official metrics in percent, by the ``evaluate`` module that ships with the suite."""
    from ..metrics.kd_glue import KDGlue

    values = KDGlue(config_name=name, keep_in_memory=True).compute(predictions=predictions, references=references)
    assert values is not None
    return {key: 100 * value for key, value in values.items()}


def metrics(name: str) -> tuple[str, ...]:
    """All that a task's evaluation gives, as ``metrics/kd_glue.py`` has them (which needs the extra [text])."""
    metrics_of = {"stsb": ("pearson", "spearman"), "mrpc": ("accuracy", "f1"), "qqp": ("accuracy", "f1")}
    suffixes = [split.removeprefix("test") for split in SOURCES[name].rows if split != "train"]
    return tuple(f"{metric}{suffix}" for suffix in suffixes for metric in metrics_of.get(name, (SOURCES[name].metric,)))


TASKS = tuple(
    TextTask(
        f"glue/{name}",
        source.labels,
        partial(load, name),
        partial(score, name),
        source.metric,
        source.rows,
        metrics=metrics(name),
    )
    for name, source in SOURCES.items()
)
