"""Which layers feature-only KD is told to match: a single one, the public code's lists, settings of single columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kd_methods
from benchmarks.common.workspace import Workspace
from benchmarks.config.table_spec import load_table
from benchmarks.driver.planning.plan import Request, make
from benchmarks.networks import build_network
from kd_methods.contract import Batch, DataInfo, Progress
from kd_methods.errors import UserError


def built(teacher: str, student: str, **values: Any) -> Any:
    """The method and the student as it is trained."""
    networks = build_network(student, 10, (3, 32, 32)), build_network(teacher, 10, (3, 32, 32))
    method = kd_methods.build("feature_only", *networks, DataInfo(100, 10), **values)
    return method, method.adapt(networks[0])


def test_a_list_of_fewer_layers_goes_to_the_students_last_stages():
    method, _ = built("resnet14", "resnet8", layers=(5,))
    assert method.student_units == ("layer3.0",) and method.teacher_units == (method.teacher.layout.layers[5],)
    method, _ = built("ResNet9", "ResNet9", layers=(2, 3))
    assert method.student_units == ("layer3.0", "layer4.0") and len(method.pairs) == 2 and not method.prepares()


@pytest.mark.parametrize(
    ("name", "q"), [("", (7, 10, 11, 12)), ("-cifar10", (9, 10, 11, 12)), ("-tiny", (7, 8, 11, 12))]
)
def test_lists_of_the_public_code_are_those_of_its_configurations(name: str, q: tuple[int, ...]):
    """Those that feature-only KD's code (arXiv 2511.14981) writes out; a row has one for every column of the table."""
    table = load_table(f"feature-only-layers{name}")
    rows = {row.id: row for row in table.methods}
    assert {row for row in rows if rows[row].by_pair} == {
        "list-q", "list-s", "list-i", "list-e", "list-root", "single",
    }  # fmt: skip
    assert tuple(rows["list-q"].settings_on("vit_b-vit_ett")["layers"]) == q
    assert rows["single"].settings_on("ResNet34-ResNet9") == {"layers": [14]}
    assert rows["list-s"].settings_on("nobody") == {"selection": "S"}
    for row in rows.values():
        assert not row.by_pair or {pair.id for pair in table.pairs} <= set(row.by_pair), row.id


def test_settings_of_single_columns(tmp_path: Path):
    file, workspace = tmp_path / "mine.yaml", Workspace(torch.device("cpu"), tmp_path, tmp_path, tmp_path)
    row = "{id: mine, method: feature_only, by_pair: {resnet14-resnet8: {layers: [5]}}, our_choice: true}"
    text = "name: mine\ntitle: mine\npairs: [resnet14-resnet8, resnet8-resnet8]\nmethods: [%s]\n"
    text += "presets: {paper: {protocol: digits-demo, seeds: [0]}}\n"
    file.write_text(text % row)
    cells = make(Request(str(file)), workspace).cells
    assert [cells["mine", pair, 0].settings["layers"] for pair in ("resnet14-resnet8", "resnet8-resnet8")] == [
        [5],
        None,
    ]
    changed = make(Request(str(file), overrides=("mine.layers=[4]",)), workspace).cells
    assert changed["mine:layers=[4]", "resnet14-resnet8", 0].settings["layers"] == [4]
    file.write_text(text % row.replace("resnet14-resnet8", "resnet14-nobody"))
    with pytest.raises(UserError, match="no pair of the table: resnet14-nobody"):
        load_table(str(file))


def test_one_layer_trains_all_that_comes_before_it_and_labels_what_comes_after():
    method, student = built("resnet14", "resnet8", layers=(5,))
    teacher = method.teacher.requires_grad_(False).eval()
    x, needs = torch.randn(4, 3, 32, 32), method.needs
    batch = Batch(x, torch.arange(4), torch.arange(4), torch.nn.functional.cross_entropy)
    outputs = student.train()(x, at=needs.student_units, fields=()), teacher(x, at=needs.teacher_units, fields=())
    losses = method.losses(*outputs, batch, Progress(1, 240))
    s, t = outputs[0]["layer3.0"], outputs[1][needs.teacher_units[0]]
    expected = (method.projectors["0-0"](s) - t).pow(2).mean()
    torch.testing.assert_close(losses.distill["feature"], expected)
    backbone = [p for name, p in student.module.named_parameters() if not name.startswith("fc")]
    gradients = torch.autograd.grad(losses.task["task"], backbone, allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in gradients)
    assert all(g.any() for g in torch.autograd.grad(losses.distill["feature"], backbone))
