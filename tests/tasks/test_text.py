"""Text: encoders of any family as chains, GLUE's files, tokens and batches, training that resumes to the same bits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import networks
from benchmarks.common.places import TABLES
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.config.recipe import Optimizer
from benchmarks.config.table_spec import load_table
from benchmarks.driver.executors import local
from benchmarks.driver.plan import Request, make
from benchmarks.networks import NetworkView, build_network
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.cells import make_cell
from benchmarks.store.runs import Store
from benchmarks.tasks import get_task, glue, grammar
from benchmarks.tasks.text import TextData, Texts, TextTask
from benchmarks.teachers.zoo import Zoo, class_order, make_entry, saved_encoder
from benchmarks.training.failures import Interrupted
from kd_methods import functional, registry
from kd_methods.contract import DataInfo
from kd_methods.errors import UserError
from kd_methods.views import text

transformers = pytest.importorskip("transformers", reason="the extra [text] is not installed")

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 90}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": {**SMALL, "type_vocab_size": 1},
    "electra": {**SMALL, "embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32, "vocab_size": 90},
    "mpnet": SMALL,
    "deberta-v2": SMALL,
    "modernbert": {
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}
NO_PROJECTIONS = {"modernbert"}
"""Families whose queries, keys and values are one product."""


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read on import


def model(family: str = "bert", seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    values = {"num_labels": 3, **FAMILIES[family], **changes}
    config = transformers.AutoConfig.for_model(family, **values)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def inputs(lengths: Sequence[int] = (7, 4, 5), seed: int = 1) -> Tensor:
    longest = max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 90, (len(lengths), longest), generator=torch.Generator().manual_seed(seed))
    return torch.stack([ids * mask, mask, torch.zeros_like(ids)], 1)


# --- networks


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_chain_is_the_librarys_own_model(family: str):
    own = text.check(model(family))
    view = NetworkView(own, text.chain, (3, text.LENGTH)).eval()
    x = inputs()
    expected = own(input_ids=x[:, 0], attention_mask=x[:, 1]).logits
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
    own = model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    view, x = NetworkView(own, text.chain, (3, text.LENGTH)), inputs()
    grads = []
    for run in (lambda: view(x).logits, lambda: own(input_ids=x[:, 0], attention_mask=x[:, 1]).logits):
        own.zero_grad()
        run().square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in own.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-6) for name in grads[0])


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
    for name, kept in (("first2", (0, 1)), ("last2", (2, 3)), ("spread2", (1, 3))):
        short = build_network(f"hf:{folder}[{name}]", 2)
        assert len(short.layout.blocks) == 2
        for new, old in enumerate(kept):
            key = "bert.encoder.layer.{}.output.dense.weight"
            assert torch.equal(short.module.state_dict()[key.format(new)], state[key.format(old)])
    assert networks.weights_digest(f"hf:{folder}") == networks.weights_digest(f"hf:{folder}[first2]")
    with pytest.raises(UserError, match="5 layers are wanted"):
        build_network(f"hf:{folder}[first5]", 2)


@pytest.mark.parametrize(("which", "kept"), [("first", (0, 1)), ("last", (2, 3)), ("spread", (1, 3))])
def test_a_student_starts_from_its_teacher(which: str, kept: tuple[int, int]):
    teacher, student = (build_network(n, 3, vocabulary=90) for n in ("bert_l4_h64", "bert_l2_h64"))
    networks.init_from(student, teacher, which)
    ours, theirs = student.module.state_dict(), teacher.module.state_dict()
    assert torch.equal(ours["bert.embeddings.word_embeddings.weight"], theirs["bert.embeddings.word_embeddings.weight"])
    for new, old in enumerate(kept):
        key = "bert.encoder.layer.{}.attention.self.query.weight"
        assert torch.equal(ours[key.format(new)], theirs[key.format(old)])
    with pytest.raises(UserError, match="one family and width"):
        networks.init_from(build_network("bert_l2_h32", 3, vocabulary=90), teacher, which)


def test_networks_and_tasks_of_different_kinds():
    with pytest.raises(UserError, match="reads images"):
        open_task(SMALL_TASK).build("resnet8")
    with pytest.raises(UserError, match="reads text"):
        get_task("digits").open(Path(), load_protocol("digits-demo"), CPU).build("bert_l2_h64")
    with pytest.raises(UserError, match="is one of images"):
        get_task("digits").open(Path(), PROTOCOL, CPU)
    with pytest.raises(UserError, match="no folder"):
        networks.weights_digest("hf:/nowhere/at-all")


# --- methods


@pytest.mark.parametrize(
    ("name", "classes", "words"),
    [("at", 3, "made for images"), ("dkd", 2, "3 classes at least"), ("dkd", 1, "a regression"),
     ("dist", 1, "a regression"), ("kd@ls", 1, "a regression"), ("letkd1", 3, "made for images")],
)  # fmt: skip
def test_methods_say_why_they_do_not_apply(name: str, classes: int, words: str):
    pair = [build_network(n, classes, vocabulary=90) for n in ("bert_l2_h64", "bert_l4_h64")]
    with pytest.raises(UserError, match=words) as error:
        registry.build(name, *pair, DataInfo(10, classes, torch.zeros(10)))
    assert "\n" not in str(error.value)


def test_a_regression_is_matched_by_squares():
    s, t = torch.randn(5, 1), torch.randn(5, 1)
    assert functional.kd(s, t, temperature=7.0).item() == pytest.approx(((s - t) ** 2).mean().item())


def test_text_losses_by_hand_and_padding_counts_for_nothing():
    torch.manual_seed(0)
    s, t, mask = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    valid = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    expected = np.mean([((s[i, j] - t[i, j]) ** 2).mean().item() for i, j in valid])
    assert functional.hidden_states(s, t, mask).item() == pytest.approx(expected, rel=1e-5)
    q, k = (torch.randn(2, 3, 4) for _ in range(2))
    pairs = [(b, i, j) for b, n in ((0, 3), (1, 2)) for i in range(n) for j in range(n)]

    def score(a: Tensor, b: Tensor, head: int) -> float:
        part = slice(2 * head, 2 * head + 2)
        return (a[part] @ b[part]).item() / 2**0.5

    squares = [(score(s[b, i], t[b, j], h) - score(q[b, i], k[b, j], h)) ** 2 for b, i, j in pairs for h in (0, 1)]
    found = functional.attention_scores((s, t), (q, k), mask, heads=2)
    assert found.item() == pytest.approx(np.mean(squares), rel=1e-5)
    divergences = []
    for b, n in ((0, 3), (1, 2)):
        for i in range(n):
            for h in (0, 1):
                ours, theirs = (np.exp([score(x[b, i], y[b, j], h) for j in range(n)]) for x, y in ((s, t), (q, k)))
                ours, theirs = ours / ours.sum(), theirs / theirs.sum()
                divergences.append((theirs * np.log(theirs / ours)).sum())
    found = functional.attention_relation((s, t), (q, k), mask, heads=2)
    assert found.item() == pytest.approx(np.mean(divergences), rel=1e-4)
    wild = torch.where(mask[:, :, None], s, 1e6)
    for loss in (
        lambda x: functional.hidden_states(x, t, mask),
        lambda x: functional.attention_scores((x, t), (q, k), mask, heads=2),
    ):
        assert torch.equal(loss(s), loss(wild))
    unit = [x / x.norm(dim=2, keepdim=True) for x in (s, t)]
    assert functional.patient_states(s, t).item() == pytest.approx((unit[0] - unit[1]).square().mean().item(), rel=1e-5)


# --- data


def texts(count: int) -> dict[str, Texts]:
    splits = grammar.load(Path(), False)
    return {name: Texts(t.first[:count], (), t.labels[:count]) for name, t in splits.items()}


SMALL_TASK = TextTask(
    "small",
    grammar.TASKS[0].labels,
    lambda root, download: texts(150),
    grammar.score,
    "accuracy",
    vocabulary=grammar.WORDS,
)
PROTOCOL = load_protocol("grammar-demo").model_copy(
    update={"name": "test", "task": "small", "epochs": 2, "recipe_epochs": 20, "batch_size": 16}
)


def open_task(task: TextTask, **changes: Any) -> TextData:
    return task.open(Path(), PROTOCOL.model_copy(update=changes), CPU)


def test_batches_hold_every_text_once_and_of_similar_length():
    data = open_task(SMALL_TASK)
    batches = list(data.batches(0, 1))
    seen = torch.cat([batch.student().indices for batch in batches])
    assert sorted(seen.tolist()) == list(range(150))
    later = [batch.student().inputs for batch in data.batches(0, 1, start=3)]
    assert all(torch.equal(a.student().inputs, b) for a, b in zip(batches[3:], later, strict=True))
    assert not torch.equal(seen, torch.cat([batch.student().indices for batch in data.batches(0, 2)]))
    padded = sum(batch.student().inputs[:, 1].numel() for batch in batches)
    shuffled = sum(data.train.padded(part, 0)[:, 1].numel() for part in torch.randperm(150).split(16))
    assert padded < shuffled
    for batch in batches:
        sentence = SMALL_TASK.read(Path())["train"].first[int(batch.student().indices[0])]
        row = batch.student().inputs[0]
        assert data.tokenizer.decode(row[0][row[1].bool()], skip_special_tokens=True) == sentence
    assert len(list(open_task(SMALL_TASK, drop_last=True).batches(0, 1))) == 150 // 16
    held = open_task(SMALL_TASK, holdout=30)
    assert held.info.num_samples == 120 and held.test_samples == 30 and len(list(held.batches(0, 1))) == 8


def test_tokens_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = open_task(SMALL_TASK)
    kept = sorted((tmp_path / "cache").rglob("*.pt"))
    assert len(kept) == 2
    second = open_task(SMALL_TASK)
    assert torch.equal(first.train.ids, second.train.ids) and torch.equal(first.train.starts, second.train.starts)
    kept[0].write_bytes(b"damaged")
    assert torch.equal(open_task(SMALL_TASK).train.ids, first.train.ids)
    open_task(SMALL_TASK, max_length=6)
    assert len(sorted((tmp_path / "cache").rglob("*.pt"))) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert torch.equal(open_task(SMALL_TASK).train.ids, first.train.ids)


@torch.no_grad()
def test_evaluation_is_in_the_texts_own_order():
    data = open_task(SMALL_TASK)
    network = data.build("bert_l2_h64").eval()
    found = data.evaluate(lambda x: {"": network(x).logits})[""]["accuracy"]
    answers = [network(data.clean(torch.tensor([i]), test=True).student().inputs).logits.argmax() for i in range(150)]
    right = torch.stack(answers) == data.tests["test"].labels
    assert found == pytest.approx(100 * right.double().mean().item())


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
}
LABELS = {**dict.fromkeys(FILES, ([1], [0])), "STS-B": ([5.0], [0.5]), "QNLI": ([0], [1])}
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
    assert {name: list(part.labels) for name, part in splits.items()} == {"train": [1], "test": [0], "test_mm": [2]}


def test_without_data_or_vocabulary_the_next_step_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"no SST-2 below .* --data-root"):
        glue.load("sst2", tmp_path, False)
    with pytest.raises(UserError, match=r"put BERT's vocab\.txt into"):
        get_task("glue/sst2").tokenizer(tmp_path, load_protocol("glue-ft"))


def test_metrics_are_the_official_ones(tmp_path: Path):
    import evaluate

    from benchmarks.tasks.metrics import kd_glue

    for name, official in kd_glue.CONFIGS.items():
        others = [f"{metric}_mm" for metric in official if "test_mm" in glue.SOURCES[name].rows]
        assert get_task(f"glue/{name}").metrics == (*official, *others)
    answers, truth = np.array([1, 0, 1, 1, 0, 0]), np.array([1, 0, 0, 1, 1, 0])
    assert glue.score("mrpc", answers, truth) == pytest.approx({"accuracy": 400 / 6, "f1": 200 / 3})
    assert glue.score("cola", answers, truth) == pytest.approx({"mcc": 100 / 3})
    values = np.array([1.0, 2.0, 4.5, 3.0]), np.array([0.5, 2.5, 5.0, 2.0])
    found = glue.score("stsb", *values)
    assert found["pearson"] == pytest.approx(100 * np.corrcoef(*values)[0, 1], abs=1e-3)
    assert found["spearman"] == pytest.approx(100 * 0.8, abs=1e-3)
    assert glue.score("stsb", np.ones(4), values[1]) == {"pearson": 0.0, "spearman": 0.0}
    assert glue.score("mrpc", np.zeros(6), truth)["f1"] == 0
    loaded = evaluate.load(str(Path(kd_glue.__file__)), "sst2", cache_dir=str(tmp_path), keep_in_memory=True)
    assert loaded.compute(predictions=answers, references=truth) == pytest.approx({"accuracy": 4 / 6})


# --- training


DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


class Trained:
    """Cells on a small text task, teacher and student with dropout."""

    def __init__(self, folder: Path, sources: Path) -> None:
        self.data = open_task(SMALL_TASK)
        size = len(self.data.tokenizer)
        self.names = {}
        for role, layers in (("teacher", 3), ("student", 2)):
            place = sources / role
            if not place.is_dir():
                model(seed=layers, num_hidden_layers=layers, vocab_size=size, **DROPOUT).save_pretrained(place)
            self.names[role] = f"hf:{place}"
        self.file = sources / "teacher.pt"
        if not self.file.is_file():
            torch.save(self.data.build(self.names["teacher"]).module.state_dict(), self.file)
        self.store = Store(folder)

    def cells(self, *methods: str) -> list[Cell]:
        ref = TeacherRef(self.names["teacher"], (), (), weights="w")
        return [
            make_cell(PROTOCOL, "d", m, self.names["student"], 0, ref if m != "student" else None, {}, {})
            for m in methods
        ]

    def run(self, cells: Sequence[Cell], stop_after: int = 10**9) -> None:
        left = [stop_after]

        def report(student_run: Any, event: str) -> None:
            left[0] -= event == "step"

        context = local.Context(
            self.store, PROTOCOL, self.data, CPU, lambda ref: self.file, report, print, lambda: left[0] <= 0
        )
        local.run(cells, context)

    def weights(self, cell: Cell) -> dict[str, Tensor]:
        run = self.store.run(cell)
        assert run.state == "done", run.status
        return torch.load(run / "student.pt", weights_only=True)


METHODS = ("kd", "pkd_patient", "tinybert", "minilm", "block_kd", "rkd")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import tasks

    monkeypatch.setitem(tasks.TASKS._registered, "small", SMALL_TASK)


@pytest.mark.usefixtures("small")
def test_alone_in_a_group_or_stopped_and_resumed_the_bits_are_the_same(tmp_path: Path):
    """Dropout included: each cell draws from its own stream."""
    group = Trained(tmp_path / "group", tmp_path)
    cells = group.cells(*METHODS)
    group.run(cells)
    before = torch.load(group.file, weights_only=True)
    stopped = Trained(tmp_path / "stopped", tmp_path)
    with pytest.raises(Interrupted):
        stopped.run(cells, stop_after=25)
    with pytest.raises(Interrupted):
        stopped.run(cells, stop_after=60)
    stopped.run(cells)
    for cell in cells:
        single = Trained(tmp_path / f"alone-{cell.method}", tmp_path)
        torch.manual_seed(99)
        single.run([cell])
        own = group.weights(cell)
        for other in (single, stopped):
            assert all(torch.equal(own[key], value) for key, value in other.weights(cell).items()), cell.label
    start = build_network(group.names["student"], 3).module.state_dict()
    assert not torch.equal(own["bert.pooler.dense.weight"], start["bert.pooler.dense.weight"])
    assert all(torch.equal(value, before[key]) for key, value in torch.load(group.file, weights_only=True).items())
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", num_labels=3)
    plain.load_state_dict(own)


def test_a_student_of_its_teachers_layers_is_another_cell():
    plain = make_cell(PROTOCOL.model_copy(update={"task": "grammar"}), "d", "kd", "bert_l2_h64", 0, None, {}, {})
    other = make_cell(
        PROTOCOL.model_copy(update={"task": "grammar"}), "d", "kd", "bert_l2_h64", 0, None, {}, {}, "first"
    )
    assert plain.key != other.key and "init" not in plain.identity()


def test_linear_schedule():
    protocol = load_protocol("glue-ft")
    rates = [protocol.lr_at(1, done, 100)[0] for done in range(101)]
    assert rates[0] == 0 and rates[5] == pytest.approx(0.5) and max(rates) == rates[10] == 1
    assert rates[55] == pytest.approx(0.5) and rates[100] == 0


def test_decay_of_matrices_only_and_clipping():
    from benchmarks.training import optimizers
    from kd_methods.contract import Losses

    layer = torch.nn.Linear(2, 2)
    config = Optimizer(name="adamw", lr=0.1, weight_decay=0.5, decay_matrices_only=True, clip=1e-3)
    optimizer = optimizers.build(layer.parameters(), 0.1, config)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    optimizer.backward_and_step(Losses(task={"task": 1e3 * layer(torch.ones(1, 2)).sum()}))
    norm = torch.cat([p.grad.flatten() for p in layer.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


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
    model(id2label={0: "good", 1: "bad", 2: "ugly"}, label2id={}).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="good, bad, ugly"):
        zoo.add(make_entry(name="other", network=f"hf:{tmp_path / 'other'}", task="glue/mnli"), tmp_path / "other")


@pytest.mark.parametrize(
    ("own", "labels", "order"),
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
    own: list[str], labels: str, order: list[int] | None, tmp_path: Path
):
    saved, said = model(id2label=dict(enumerate(own)), label2id={}, num_labels=2), []
    saved.save_pretrained(tmp_path / "saved")
    given = tuple(filter(None, labels.split(",")))
    if order is None:
        with pytest.raises(
            UserError, match=r"glue/sst2 has negative, positive; give [^\n]* --labels negative,positive$"
        ):
            saved_encoder(tmp_path / "saved", get_task("glue/sst2"), given, said.append)
        return
    found = saved_encoder(tmp_path / "saved", get_task("glue/sst2"), given, said.append)
    assert torch.equal(found["classifier.weight"], saved.classifier.weight[order])
    assert torch.equal(found["classifier.bias"], saved.classifier.bias[order])
    assert bool(said) == (own[0][-1] in "01" and not labels)  # numbers may be another order's


def test_classes_of_three_words_and_of_files(tmp_path: Path):
    assert class_order(["Not-Equivalent", "equivalent"], ["not_equivalent", "equivalent"]) == ([0, 1], False)
    assert class_order(["not duplicate", "dup"], ["not_duplicate", "duplicate"]) == ([0, 1], False)
    (tmp_path / "file.pt").write_bytes(b"")
    entry = make_entry(name="mine", network="bert_l2_h32", task="grammar")
    with pytest.raises(UserError, match=r"--labels .*file\.pt is a file"):
        Zoo(tmp_path / "zoo").add(entry, tmp_path / "file.pt", labels=("a", "b"))


def test_a_text_longer_than_the_models_positions_is_refused_before_anything_runs(tmp_path: Path):
    protocol = "extends: grammar-demo\nname: long\nversion: 1\nmax_length: 600\n"
    table = "name: t\ntitle: t\nextra: text\npairs: [bert_l4_h64-bert_l2_h64]\nmethods: [student]\n"
    (tmp_path / "p.yaml").write_text(protocol)
    (tmp_path / "t.yaml").write_text(f"{table}presets: {{paper: {{protocol: p.yaml, seeds: [0]}}}}\n")
    line = r"^protocol long keeps 600 tokens of a text, network 'bert_l4_h64' has 512 positions; [^\n]*512 or less$"
    with pytest.raises(UserError, match=line):
        make(Request(str(tmp_path / "t.yaml")), Workspace(CPU, tmp_path, tmp_path, tmp_path))


def test_how_many_positions_encoders_have(tmp_path: Path):
    for family, known in (("bert", 512), ("roberta", 510), ("modernbert", None)):
        model(family).save_pretrained(tmp_path / family)
        assert networks.positions(f"hf:{tmp_path / family}[first2]") == known
    with pytest.raises(UserError, match="is no folder with config"):
        networks.positions(f"hf:{tmp_path / 'none'}")


# --- tables


def test_columns_of_tasks():
    table = load_table("table5")
    columns = table.preset("paper").pairs
    assert columns is not None and len(columns) == 18
    assert [c.id for c in columns[:3]] == ["bert12-bert6:cola", "bert12-bert6:sst2", "bert12-bert6:mrpc"]
    assert {c.metric for c in columns} == {"", "accuracy_mm"}
    published = {line["pair"] for line in _published()}
    assert published <= {c.id for c in columns}


def test_the_mean_over_tasks_is_taken_per_seed_and_counts_a_task_once():
    from benchmarks.report import Column, Entry, Row, Run, Table, render, with_means

    columns = tuple(
        Column(f"p:{key}", "T", "S", 80.0 + i, task=task, metric=metric)
        for i, (key, task, metric) in enumerate(
            (("a", "glue/a", "f1"), ("m", "glue/m", "accuracy"), ("m.accuracy_mm", "glue/m", "accuracy_mm"))
        )
    )
    done = {
        key: Entry(tuple(Run(seed, "done", last=value + seed, best=90.0) for seed in (0, 1)))
        for key, value in (("p:a", 10.0), ("p:m", 20.0), ("p:m.accuracy_mm", 40.0))
    }
    refused = {
        **done,
        "p:a": Entry((Run(0, "refused", message="two classes"), Run(1, "refused", message="two classes"))),
    }
    short = {**done, "p:m": Entry((Run(0, "done", last=20.0, best=90.0), Run(1, "missing")))}
    rows = tuple(Row(key, key, "logit", entries) for key, entries in (("kd", done), ("dkd", refused), ("rkd", short)))
    columns, rows = with_means(columns, rows)
    assert [column.key for column in columns] == ["p:a", "p:m", "p:m.accuracy_mm", "p:mean"]
    assert columns[-1].teacher_accuracy == (80 + (81 + 82) / 2) / 2 and columns[-1].metric == "of 2"
    runs = {row.key: row.entries["p:mean"].runs for row in rows}
    assert [run.last for run in runs["kd"]] == [20.0, 21.0]
    assert {run.status for run in runs["dkd"]} == {"refused"}
    assert [(run.status, run.last) for run in runs["rkd"]] == [("done", 20.0), ("missing", None)]
    texts = render(Table("t", "T", "The metric named over each column", columns, rows))
    assert "Task & a & m & m & mean" in texts[".tex"]
    assert "Metric & f1 & accuracy & accuracy\\_mm & of 2" in texts[".tex"]
    assert "T<br>S<br>mean<br>of 2" in texts[".md"] and "20.50** ± 0.71" in texts[".md"]
    assert "S on m (accuracy): 1 finished, 1 missing of 2" in texts[".md"]


def _published() -> list[dict[str, str]]:
    import csv

    with (TABLES / "published" / "glue.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.real_data
def test_real_glue_trains(real_data: Path, tmp_path: Path):
    """The official files: row counts agree, a table of two tasks ends with their mean."""
    from click.testing import CliRunner

    from benchmarks.cli.main import cli

    for name, counts in (("cola", (8551, 1043)), ("sst2", (67349, 872)), ("mrpc", (3668, 408)), ("stsb", (5749, 1500))):
        task = get_task(f"glue/{name}")
        assert task.deviations(real_data) == ()
        assert tuple(len(part.labels) for part in task.read(real_data).values()) == counts
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
    places = ["--data-root", str(real_data), "--output", str(tmp_path), "--no-cost", "--device", "cpu"]
    result = CliRunner().invoke(cli, [*arguments, *places])
    assert result.exit_code == 0, result.output
    rows = json.loads(next(tmp_path.rglob("plan.json")).read_text())["columns"]
    assert len(rows) == 4 and "mean" in next(tmp_path.rglob("table5.tex")).read_text()
