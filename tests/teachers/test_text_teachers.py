"""Saved encoders as teachers: their classes in the order of the task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.text import inputs, model

from benchmarks.networks import build_network
from benchmarks.tasks import get_task
from benchmarks.teachers.zoo import Zoo, class_order, make_entry, saved_encoder
from kd_methods.errors import UserError

pytestmark = pytest.mark.usefixtures("offline")


def test_teachers_from_a_folder_keep_their_labels_straight(tmp_path: Path):
    """The trap of MNLI: checkpoints order their classes differently."""
    order = {0: "CONTRADICTION", 1: "entailment", 2: "neutral"}
    saved = model(id2label=order, label2id={name: i for i, name in order.items()})
    saved.save_pretrained(tmp_path / "mnli")
    zoo = Zoo(tmp_path / "zoo")
    entry = make_entry(name="mine", network=f"hf:{tmp_path / 'mnli'}", task="glue/mnli")
    added = zoo.add(entry, tmp_path / "mnli")
    view = build_network(added.network, 3).eval()
    view.module.load_state_dict(torch.load(zoo.path(added), weights_only=True))
    x = inputs()
    with torch.no_grad():
        theirs = saved(input_ids=x[:, 0], attention_mask=x[:, 1]).logits
        assert torch.allclose(view(x).logits, theirs[:, [1, 2, 0]], atol=1e-6)
    saved.base_model.save_pretrained(tmp_path / "encoder")
    with pytest.raises(UserError, match=r"encoder has no trained classifier of 3 classes \(classifier\.bias\)"):
        zoo.add(make_entry(name="new", network=f"hf:{tmp_path / 'encoder'}", task="glue/mnli"), tmp_path / "encoder")
    model(id2label={0: "good", 1: "bad", 2: "ugly"}, label2id={}).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="good, bad, ugly"):
        zoo.add(make_entry(name="other", network=f"hf:{tmp_path / 'other'}", task="glue/mnli"), tmp_path / "other")


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (["neg", "pos"], "", [0, 1]),
        (["Positive ", "NEGATIVE"], "", [1, 0]),
        (["0", "1"], "", [0, 1]),
        (["1", "0"], "", [1, 0]),
        (["Label 0", "Label 1"], "", [0, 1]),
        (["LABEL_0", "LABEL_1"], "positive,negative", [1, 0]),
        (["LABEL_0", "LABEL_1"], "1,0", [1, 0]),
        (["sad", "happy"], "negative,positive", [0, 1]),
        (["sad", "happy"], "", None),
        (["n", "p"], "", [0, 1]),
        (["", "positive"], "", None),
        (["1", "2"], "", None),
        (["pos", "positive"], "", None),
        (["0", "1"], "positive", None),
        (["0", "1"], "good,bad", None),
    ],
)
@torch.no_grad()
def test_names_that_checkpoints_give_their_classes(
    names: list[str], labels: str, order: list[int] | None, tmp_path: Path
):
    saved, said = model(id2label=dict(enumerate(names)), label2id={}, num_labels=2), []
    saved.save_pretrained(tmp_path / "saved")
    given = tuple(filter(None, labels.split(",")))
    if order is None:
        with pytest.raises(
            UserError, match=r"glue/sst2 has negative, positive; give [^\n]* --labels negative,positive$"
        ):
            saved_encoder(tmp_path / "saved", get_task("glue/sst2"), given, said.append)
        return
    encoder = saved_encoder(tmp_path / "saved", get_task("glue/sst2"), given, said.append)
    assert torch.equal(encoder["classifier.weight"], saved.classifier.weight[order])
    assert torch.equal(encoder["classifier.bias"], saved.classifier.bias[order])
    assert bool(said) == (names[0][-1] in "01" and not labels)  # numbers may be another order's


def test_classes_of_three_words_and_of_files(tmp_path: Path):
    assert class_order(["Not-Equivalent", "equivalent"], ["not_equivalent", "equivalent"]) == ([0, 1], False)
    assert class_order(["not duplicate", "dup"], ["not_duplicate", "duplicate"]) == ([0, 1], False)
    (tmp_path / "file.pt").write_bytes(b"")
    entry = make_entry(name="mine", network="bert_l2_h32", task="grammar")
    with pytest.raises(UserError, match=r"--labels .*file\.pt is a file"):
        Zoo(tmp_path / "zoo").add(entry, tmp_path / "file.pt", labels=("a", "b"))
