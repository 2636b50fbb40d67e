"""Encoders of any family as chains of their layers: the library's numbers, a teacher's first layers, positions."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.text import CPU, FAMILIES, PROTOCOL, SMALL, SMALL_TASK, inputs, model, open_task, transformers

import kd_methods
from benchmarks import networks
from benchmarks.config.protocol import load_protocol
from benchmarks.networks import NetworkView, build_network
from benchmarks.store.cell import Cell
from benchmarks.tasks import get_task
from benchmarks.training.assembly import begin
from kd_methods.contract import DataInfo
from kd_methods.errors import Changed, UserError
from kd_methods.views import text

pytestmark = pytest.mark.usefixtures("offline")


NO_PROJECTIONS = {"modernbert"}
"""Families whose queries, keys and values are one product."""


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_chain_is_the_librarys_own_model(family: str):
    plain = text.check(model(family))
    view = NetworkView(plain, text.chain, (3, text.LENGTH)).eval()
    x = inputs()
    expected = plain(input_ids=x[:, 0], attention_mask=x[:, 1]).logits
    outputs = view(x, at=view.units, fields=("queries", "keys", "values"))
    assert torch.allclose(outputs.logits, expected, atol=1e-6)
    for unit in view.units[:-1]:
        assert torch.allclose(view.resume(unit, outputs[unit]), expected, atol=1e-6), unit
    assert bool(outputs.queries) == (family not in NO_PROJECTIONS)
    assert view.shape("layer.2") == (text.LENGTH, 16) and view.shape("pooled") == (16,)
    for i, length in enumerate((7, 4, 5)):  # padding changes nothing
        assert torch.allclose(view(x[i : i + 1, :, :length]).logits, expected[i : i + 1], atol=1e-5)


@torch.no_grad()
def test_states_of_another_network_go_on_in_this_one():
    """As a stone's do: without the calls that this network would have noted, and several batches joined."""
    from kd_methods.contract import Tokens, joined

    view = NetworkView(model("mpnet"), text.chain, (3, text.LENGTH)).eval()
    x = inputs()
    outputs = view(x, at=("layer.1", "layer.2"), fields=())
    foreign = Tokens(outputs["layer.1"].hidden, x)
    assert torch.allclose(view.resume("layer.1", foreign), outputs.logits, atol=1e-6)
    both = joined([view.resume("layer.1", foreign, until="layer.2"), outputs["layer.2"]])
    assert torch.allclose(view.resume("layer.2", both), outputs.logits.repeat(2, 1), atol=1e-6)


def test_the_chain_gives_the_same_gradients():
    plain = model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    view, x = NetworkView(plain, text.chain, (3, text.LENGTH)), inputs()
    grads = []
    for run in (lambda: view(x).logits, lambda: plain(input_ids=x[:, 0], attention_mask=x[:, 1]).logits):
        plain.zero_grad()
        run().square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in plain.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-6) for name in grads[0])


def test_without_the_extra_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for make in (
        lambda: networks.build_network("bert_l2_h64", 2, (3, 8), 30),
        lambda: networks.build_network(f"hf:{tmp_path}", 2, (3, 8), 30),
        lambda: replace(get_task("grammar")).tokenizer(tmp_path, load_protocol("grammar-demo")),
    ):
        with pytest.raises(UserError, match=r"texts need transformers, which is not installed: .* the extra \[text\]"):
            make()


def test_what_cannot_be_cut_is_refused():
    config = transformers.AutoConfig.for_model("albert", **SMALL, embedding_size=8)
    albert = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(UserError, match="AlbertForSequenceClassification") as error:
        text.check(albert)
    assert "\n" not in str(error.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT as transformers saves it."""
    model(num_labels=2).save_pretrained(tmp_path / "saved-bert")
    return tmp_path / "saved-bert"


@torch.no_grad()
def test_a_saved_model_is_a_network(folder: Path):
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    view, x = build_network(f"hf:{folder}", 2).eval(), inputs()
    assert torch.allclose(view(x).logits, saved(input_ids=x[:, 0], attention_mask=x[:, 1]).logits, atol=1e-5)
    state = saved.state_dict()
    assert view.plain().state_dict().keys() == state.keys()  # what is kept loads into plain transformers
    for name, layers in (("first2", (0, 1)), ("last2", (2, 3)), ("spread2", (1, 3))):
        short = build_network(f"hf:{folder}[{name}]", 2)
        assert len(short.layout.blocks) == 2
        for new, old in enumerate(layers):
            key = "bert.encoder.layer.{}.output.dense.weight"
            assert torch.equal(short.module.state_dict()[key.format(new)], state[key.format(old)])
    assert networks.weights_digest(f"hf:{folder}") == networks.weights_digest(f"hf:{folder}[first2]")
    with pytest.raises(UserError, match="5 layers are wanted"):
        build_network(f"hf:{folder}[first5]", 2)


@pytest.mark.parametrize(("which", "layers"), [("first", (0, 1)), ("last", (2, 3)), ("spread", (1, 3))])
def test_a_student_starts_from_its_teacher(which: str, layers: tuple[int, int]):
    teacher, student = (build_network(n, 3, vocabulary=90) for n in ("bert_l4_h64", "bert_l2_h64"))
    networks.init_from("bert_l2_h64", student, teacher, which)
    ours, theirs = student.module.state_dict(), teacher.module.state_dict()
    assert torch.equal(ours["bert.embeddings.word_embeddings.weight"], theirs["bert.embeddings.word_embeddings.weight"])
    for new, old in enumerate(layers):
        key = "bert.encoder.layer.{}.attention.self.query.weight"
        assert torch.equal(ours[key.format(new)], theirs[key.format(old)])
    with pytest.raises(UserError, match="one family and width"):
        networks.init_from("bert_l2_h32", build_network("bert_l2_h32", 3, vocabulary=90), teacher, which)


def test_networks_and_tasks_of_different_kinds():
    with pytest.raises(UserError, match="reads images"):
        open_task(SMALL_TASK).build("resnet8")
    with pytest.raises(UserError, match="reads text"):
        get_task("digits").open(Path(), load_protocol("digits-demo"), CPU).build("bert_l2_h64")
    with pytest.raises(UserError, match="is one of images"):
        get_task("digits").open(Path(), PROTOCOL, CPU)
    with pytest.raises(UserError, match="no folder"):
        networks.weights_digest("hf:/nowhere/at-all")


def test_how_many_positions_encoders_have(tmp_path: Path):
    for family, known in (("bert", 512), ("roberta", 510), ("modernbert", None)):
        model(family).save_pretrained(tmp_path / family)
        assert networks.positions(f"hf:{tmp_path / family}[first2]") == known
    with pytest.raises(UserError, match="is no folder with config"):
        networks.positions(f"hf:{tmp_path / 'none'}")


@pytest.mark.parametrize("content", ["{}", "{", '{"model_type": "nonsense"}', '{"model_type": "vit"}'])
def test_a_source_that_is_no_encoder_of_texts_is_refused_in_one_line(content: str, tmp_path: Path):
    """While a run is planned: its weights are not looked at before."""
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=f"transformers cannot load '{tmp_path}' ") as refused:
        networks.positions(f"hf:{tmp_path}")
    assert "\n" not in str(refused.value)


def test_other_weights_under_a_source_s_name_are_noticed(tmp_path: Path):
    """In the process that planned with the earlier ones, too."""
    name, digests = f"hf:{tmp_path}", list[str]()
    for bias in (0.0, 1.0):
        saved: Any = model("bert")
        saved.classifier.bias.data.fill_(bias)
        saved.save_pretrained(tmp_path)
        digests.append(networks.weights_digest(name))
    assert digests[0] != digests[1]
    student = build_network(name, 3)
    for planned, fits in zip(digests, (False, True), strict=True):
        made = Cell("glue/mrpc", "data", {}, 0.1, name, "student", 1, {}, 0, plugins={f"network:{name}": planned})
        with contextlib.nullcontext() if fits else pytest.raises(Changed, match="other weights than when"):
            begin(made, student, None)


def test_a_source_of_a_plugin_says_how_its_students_start(monkeypatch: pytest.MonkeyPatch):
    class StartingSource(networks.NetworkSource):
        name, modality = "mine", "images"

        def names(self) -> list[str]:
            return ["mine"]

        def init_from(self, student: Any, teacher: Any, which: str) -> None:
            raise UserError(f"mine: {which}")

    monkeypatch.setitem(networks.SOURCES._registered, "mine", StartingSource())
    one = build_network("resnet8", 10, (3, 8, 8))
    with pytest.raises(UserError, match="mine: first"):
        networks.init_from("mine", one, one, "first")


def test_small_encoders_of_another_family_are_built_for_any_vocabulary():
    """Rotary positions and fused projections: methods that read queries, keys and values say that there are none."""
    teacher, student = (build_network(f"modernbert_l{n}_h64", 3, vocabulary=90) for n in (4, 2))
    assert networks.positions("modernbert_l4_h64") is None
    assert [len(view.layout.blocks) for view in (teacher, student)] == [4, 2] and not teacher.layout.queries
    x = inputs()
    text.check(student.module)
    method = kd_methods.build("block_kd", student, teacher.requires_grad_(False).eval(), DataInfo(10, 3))
    stones = method.stones(student(x, fields=("blocks",)), [1, 2])
    assert all(stone.shape == (len(x), 3) for stone in stones)
    with pytest.raises(UserError, match="minilm"):
        kd_methods.build("minilm", student, teacher, DataInfo(10, 3))
