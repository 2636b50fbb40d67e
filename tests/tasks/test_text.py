"""Tasks of texts: batches of similar length, tokens that are kept, evaluation in the own order."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.text import PROTOCOL, SMALL_TASK, open_task

from benchmarks.tasks.text import Texts
from kd_methods.errors import UserError

pytestmark = pytest.mark.usefixtures("offline")


def test_batches_hold_every_text_once_and_of_similar_length():
    data = open_task(SMALL_TASK)
    batches = list(data.batches(0, 1))
    seen = torch.cat([batch.student().indices for batch in batches])
    assert sorted(seen.tolist()) == list(range(150))
    later = [batch.student().inputs for batch in data.batches(0, 1, start=3)]
    assert all(torch.equal(a.student().inputs, b) for a, b in zip(batches[3:], later, strict=True))
    assert not torch.equal(seen, torch.cat([batch.student().indices for batch in data.batches(0, 2)]))
    padded = sum(batch.student().inputs[:, 1].numel() for batch in batches)
    shuffled = sum(data.train.padded(indices, 0)[:, 1].numel() for indices in torch.randperm(150).split(16))
    assert padded < shuffled
    for batch in batches:
        sentence = SMALL_TASK.read(Path())["train"].first[int(batch.student().indices[0])]
        row = batch.student().inputs[0]
        assert data.tokenizer.decode(row[0][row[1].bool()], skip_special_tokens=True) == sentence
    full, seen = open_task(SMALL_TASK, drop_last=True), set[int]()
    for epoch in range(20):
        batches = list(full.batches(0, epoch))
        assert len(batches) == 150 // 16
        seen.update(*(batch.student().indices.tolist() for batch in batches))
    assert len(seen) == 150, "another rest is left out in every epoch, not always the longest texts"
    held = open_task(SMALL_TASK, holdout=30)
    assert held.info.num_samples == 120 and held.test_samples == 30 and len(list(held.batches(0, 1))) == 8


def test_a_length_without_room_for_words_is_refused():
    with pytest.raises(UserError, match="max_length 2 leaves no room beside 3 marks"):
        open_task(SMALL_TASK, max_length=2)


def test_tokens_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = open_task(SMALL_TASK)
    cached = sorted((tmp_path / "cache").rglob("*.pt"))
    assert len(cached) == 2
    second = open_task(SMALL_TASK)
    assert torch.equal(first.train.ids, second.train.ids) and torch.equal(first.train.starts, second.train.starts)
    cached[0].write_bytes(b"damaged")
    assert torch.equal(open_task(SMALL_TASK).train.ids, first.train.ids)
    open_task(SMALL_TASK, max_length=6)
    assert len(sorted((tmp_path / "cache").rglob("*.pt"))) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert torch.equal(open_task(SMALL_TASK).train.ids, first.train.ids)


def test_reading_texts_changes_nothing_that_their_fingerprint_holds():
    """A worker compares it after it has read and tokenised them, with that of a process that had not."""
    planned = replace(SMALL_TASK).fingerprint(Path(), PROTOCOL)
    worker = replace(SMALL_TASK)
    open_task(worker)
    assert worker.fingerprint(Path(), PROTOCOL) == planned
    assert len(list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.pt"))) == 2
    open_task(worker)
    assert len(list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.pt"))) == 2, "kept under the same names"


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("part", ["first", "second", "labels", "order"])
def test_another_text_or_label_is_another_fingerprint(split: str, part: str):
    """One of them, in any split: cells over it are other cells, and none of the store's."""
    pairs = {name: Texts(["a b", "c", "d"], ["x", "y", "z"], [0, 1, 1]) for name in ("train", "test")}
    old = pairs[split]
    changes = {
        "first": replace(old, first=["a b", "c", "e"]), "second": replace(old, second=["x", "z", "z"]),
        "labels": replace(old, labels=[0, 0, 1]), "order": replace(old, first=["c", "a b", "d"]),
    }  # fmt: skip
    fingerprints = [
        replace(SMALL_TASK, load=lambda root, download, splits=splits: splits).fingerprint(Path(), PROTOCOL)
        for splits in (pairs, dict(pairs), {**pairs, split: changes[part]})
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_another_vocabulary_is_another_fingerprint():
    words = SMALL_TASK.vocabulary
    others = (words, (*words, "word"), words[:-1], (words[1], words[0], *words[2:]))
    fingerprints = {replace(SMALL_TASK, vocabulary=other).fingerprint(Path(), PROTOCOL) for other in others}
    assert SMALL_TASK.fingerprint(Path(), PROTOCOL) in fingerprints and len(fingerprints) == 4


@torch.no_grad()
def test_evaluation_is_in_the_texts_own_order():
    data = open_task(SMALL_TASK)
    network = data.build("bert_l2_h64").eval()
    accuracy = data.evaluate(lambda x: {"": network(x).logits})[""]["accuracy"]
    answers = [network(data.clean(torch.tensor([i]), test=True).student().inputs).logits.argmax() for i in range(150)]
    right = torch.stack(answers) == data.tests["test"].labels
    assert accuracy == pytest.approx(100 * right.double().mean().item())
