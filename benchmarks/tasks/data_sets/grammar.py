"""Sentences made by a small grammar, to be judged as negative, neutral or positive: text that needs no download.

``the slow engine was not good but the music is fine``: each clause says something good or bad, "not" turns it round,
after "but" the second clause alone counts, with "and" two that disagree are neutral. What stands before a noun says
nothing, so a bag of words does not do.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from ..text import Texts, TextTask

NOUNS = ["film", "book", "meal", "room", "song", "plot", "music", "engine", "garden", "teacher", "answer", "story"]
GOOD = ["good", "fine", "bright", "warm", "fresh", "lovely"]
BAD = ["bad", "dull", "slow", "cold", "stale", "awful"]
VERBS = ["is", "was", "seems", "felt"]
ADVERBS = ["very", "rather", "really", "quite"]
WORDS = (*NOUNS, *GOOD, *BAD, *VERBS, *ADVERBS, "the", "a", "not", "and", "but")

TRAIN, TEST = 3000, 1000


def clause(draw: random.Random) -> tuple[str, int]:
    """A clause and what it says: +1 or -1."""
    says = draw.choice((1, -1))
    words = [draw.choice(("the", "a"))]
    if draw.random() < 0.15:
        words.append(draw.choice(GOOD + BAD))
    words += [draw.choice(NOUNS), draw.choice(VERBS)]
    turned = draw.random() < 0.25
    words += ["not"] if turned else []
    if draw.random() < 0.3:
        words.append(draw.choice(ADVERBS))
    words.append(draw.choice(GOOD if (says > 0) != turned else BAD))
    return " ".join(words), says


def sentence(draw: random.Random) -> tuple[str, int]:
    """A sentence and its class: 0 negative, 1 neutral, 2 positive."""
    first, one = clause(draw)
    if draw.random() < 0.4:
        return first, one + 1
    second, two = clause(draw)
    if draw.random() < 0.4:
        return f"{first} but {second}", two + 1
    return f"{first} and {second}", (one + two) // 2 + 1


def load(root: Path, download: bool) -> dict[str, Texts]:
    """The same sentences every time; none of the test set is in the training set."""
    draw = random.Random(0)
    label_of: dict[str, int] = {}
    while len(label_of) < TRAIN + TEST:
        text, label = sentence(draw)
        label_of.setdefault(text, label)
    items = list(label_of.items())
    splits = {"train": items[:TRAIN], "test": items[TRAIN:]}
    return {name: Texts([t for t, _ in texts], (), [y for _, y in texts]) for name, texts in splits.items()}


def score(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Accuracy in percent."""
    return {"accuracy": 100 * float((predictions == references).mean())}


LABELS = ("negative", "neutral", "positive")
TASKS = (
    TextTask(
        "grammar", LABELS, load, score, "accuracy",
        metrics=("accuracy",), vocabulary=WORDS, usual_protocol="grammar-demo",
    ),
)  # fmt: skip
