"""What a request, a table or a plugin gets wrong is one line, before anything is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.image_files import write_images
from helpers.plans import CPU, METHOD, TABLE, plan

from benchmarks.common import plugins
from benchmarks.common.workspace import Workspace
from benchmarks.config import published, table_spec
from benchmarks.driver.planning.plan import Request, make
from benchmarks.teachers.zoo import Zoo
from kd_methods.errors import UserError


def test_a_protocol_for_teachers_is_none_for_students(table: str, zoo: Zoo) -> None:
    file = Path(table).parent / "started.yaml"
    file.write_text("extends: digits-demo\nname: started\nversion: 1\nstart: imagenet\n")
    Path(table).write_text(TABLE.replace("protocol: digits-demo", "protocol: started.yaml"))
    with pytest.raises(UserError, match="started is one for teachers"):
        plan(table, zoo)


def test_a_rate_for_an_unknown_student_is_refused(table: str, zoo: Zoo) -> None:
    (Path(table).parent / "p.yaml").write_text(
        "extends: digits-demo\nname: p\nversion: 1\nlr_by_student:\n  resnet8: 0.1\n  Resnet14: 0.5\n"
    )
    Path(table).write_text(TABLE.replace("digits-demo", "p.yaml"))
    with pytest.raises(UserError, match=r"p\.yaml line 6: lr_by_student\.Resnet14: .*did you mean resnet14"):
        plan(table, zoo)


def test_a_crop_that_can_miss_the_image_is_refused(table: str, zoo: Zoo) -> None:
    file = Path(table).parent / "p.yaml"
    Path(table).write_text(TABLE.replace("digits-demo", "p.yaml"))
    file.write_text("extends: digits-demo\nname: p\nversion: 1\ncrop_padding: 16\n")
    with pytest.raises(UserError, match=r"crop_padding 16 leaves nothing, images of task digits have 16 pixels"):
        plan(table, zoo)
    file.write_text("extends: digits-demo\nname: p\nversion: 1\ncrop_padding: 15\n")
    assert plan(table, zoo).protocol.crop_padding == 15


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("presets:", "metric: topp1\npresets:", "line 5: metric"),
        ("presets:", "tasks: [{task: digits, metric: topp1}]\npresets:", r"line 5: tasks\.0\.metric"),
        (
            "[resnet14-resnet8,",
            "[{id: p, teacher: resnet14, student: resnet8, metric: topp1},",
            r"line 3: pairs\.0\.metric",
        ),
    ],
)
def test_a_metric_that_the_task_does_not_have_is_refused(table: str, zoo: Zoo, old: str, new: str, place: str) -> None:
    Path(table).write_text(TABLE.replace(old, new))
    with pytest.raises(UserError, match=rf"mine\.yaml {place}: column '.*': unknown metric 'topp1'; did you mean top1"):
        plan(table, zoo)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("kd, dkd", "kdd, dkd", 4, r"methods\.1\.method: unknown method 'kdd'; did you mean kd"),
        ("temperature: 2", "temprature: 2", 4, r"methods\.3\.settings: unknown setting of method 'kd' 'temprature'"),
        ("temperature: 2", "temperature: hot", 4, r"methods\.3\.settings: setting kd\.temperature='hot': Input"),
        ("{temperature: 2}", "{}, optimizer: {name: sdg}", 4, r"methods\.3\.optimizer: unknown optimizer 'sdg'"),
        ("{temperature: 2}", "{}, optimizer: {delta: 1}", 4, r"methods\.3\.optimizer: .*delta is a setting of .* dot"),
        (
            "{temperature: 2}",
            "{}, student: resnet9",
            4,
            r"methods\.3\.student: unknown network 'resnet9'; did you mean",
        ),
        ("[resnet14-resnet8,", "[resnet14-resnet9,", 3, r"pairs\.0\.student: unknown network 'resnet9'"),
        ("[0, 1]", "[0], task: digit", 6, r"presets\.paper\.task: unknown task 'digit'; did you mean digits"),
        ("presets:", "tasks:\n  - digits\n  - digit\npresets:", 7, r"tasks\.1: unknown task 'digit'"),
        (
            "seeds: [0, 1]",
            "seeds: [0], methods: [kd, {id: b, method: bd}]",
            6,
            r"presets\.paper\.methods\.1\.method: unk",
        ),
    ],
)
def test_what_a_table_names_wrongly_has_its_line(
    table: str, zoo: Zoo, old: str, new: str, line: int, words: str
) -> None:
    Path(table).write_text(TABLE.replace(old, new))
    with pytest.raises(UserError, match=rf"^{re.escape(table)} line {line}: {words}") as caught:
        plan(table, zoo)
    assert "\n" not in str(caught.value)


def test_what_a_table_takes_over_has_the_line_of_that_file(tmp_path: Path, zoo: Zoo) -> None:
    """And what the command line names has none."""
    (tmp_path / "t.yaml").write_text("extends: table1\nname: mine\npresets:\n  paper: {protocol: p.yaml}\n")
    (tmp_path / "p.yaml").write_text("extends: digits-demo\nname: p\nversion: 1\noptimizer:\n  name: sdg\n")
    with pytest.raises(UserError, match=r"p\.yaml line 5: optimizer\.name: unknown optimizer 'sdg'; did you mean sgd"):
        plan(str(tmp_path / "t.yaml"), zoo)
    (tmp_path / "p.yaml").write_text("extends: digits-demo\nname: p\nversion: 1\n")
    with pytest.raises(UserError, match=r"^unknown method 'kdd'"):
        plan(str(tmp_path / "t.yaml"), zoo, methods=("kdd",))


def test_published_values_are_read_before_anything_is_trained(
    table: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "published").mkdir()
    header = "method,pair,value,std,source,epoch_rule,protocol,teacher,note\n"
    (tmp_path / "published" / "mine.csv").write_text(header + "kd,p,seventy,,here,last,digits-demo,crd,\n")
    monkeypatch.setattr(published, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(table_spec, "PUBLISHED", tmp_path / "published")
    Path(table).write_text(TABLE.replace("presets:", "published: mine.csv\npresets:"))
    with pytest.raises(UserError, match=r"mine\.csv line 2: value: Input should be a valid number"):
        plan(table, zoo)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"preset": "papper"}, "did you mean paper"),
        ({"methods": ("dkdd",)}, "unknown method 'dkdd'; did you mean dkd"),
        ({"pairs": ("resnet14-resnet9",)}, "unknown pair 'resnet14-resnet9'; did you mean resnet14-resnet8"),
        ({"pairs": ("resnet14",)}, "unknown pair 'resnet14'"),
        ({"overrides": ("kd.temprature=2",)}, "did you mean temperature"),
        ({"overrides": ("kdd.temperature=2",)}, "unknown method in --set 'kdd'; did you mean kd"),
        ({"overrides": ("kd.temperature",)}, "write METHOD.key=value"),
        ({"overrides": ("temperature=2",)}, "write METHOD.key=value"),
        ({"overrides": ("kd.=2",)}, "write METHOD.key=value"),
        ({"overrides": ("kd.temperature=[2",)}, "is not a value"),
        ({"overrides": ("kd.temperature=warm",)}, "kd.temperature"),
        ({"overrides": ("kd.temperature=",)}, "kd.temperature"),
        ({"overrides": ("kd.temperature=-1",)}, "kd.temperature"),
        ({"overrides": ("kd.temperature=.inf",)}, "kd.temperature"),
        ({"overrides": ("kd.temperature=.nan",)}, "kd.temperature"),
        ({"epochs": 0}, "at least 1"),
        ({"holdout": 1437}, "--holdout 1437: the training set has 1437 samples"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_clear_line(table: str, zoo: Zoo, request_: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        plan(table, zoo, **request_)
    assert "\n" not in str(caught.value)


def test_an_unknown_network_in_a_table_is_named(tmp_path: Path, zoo: Zoo) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(TABLE.replace("[resnet14-resnet8,", "[resnet14-resnett8,"))
    with pytest.raises(UserError, match="unknown network 'resnett8'; did you mean resnet8"):
        plan(str(path), zoo)


def test_an_unknown_method_or_task_in_a_file_is_named(tmp_path: Path, zoo: Zoo) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(TABLE.replace("dkd,", "dkdd,"))
    with pytest.raises(UserError, match="unknown method 'dkdd'"):
        plan(str(path), zoo)
    path.write_text(TABLE.replace("seeds:", "task: digit, seeds:"))
    with pytest.raises(UserError, match="unknown task 'digit'; did you mean digits"):
        plan(str(path), zoo)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("absent.py", None, "there is no such file"),
        ("syntax.py", "def f(:\n", "SyntaxError"),
        ("crash.py", "1 / 0\n", "ZeroDivisionError"),
        ("nothing.py", "x = 1\n", "registers nothing"),
        ("notes.txt", METHOD, "a plugin is a Python file"),
        ("taken.py", METHOD.replace("plan_mine", "kd"), "called 'kd'"),
    ],
)
def test_a_wrong_plugin_is_one_clear_line(
    tmp_path: Path, clean_registry: None, name: str, text: str | None, words: str
) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        plugins.load([file])
    assert len(str(caught.value).splitlines()) == 1


def test_settings_of_a_combination(table: str, zoo: Zoo) -> None:
    made = plan(table, zoo, methods=("crd+kd", "kd"), overrides=("crd+kd.kd.temperature=2", "crd+kd.crd.dim=64"))
    settings = made.cells["crd+kd:crd.dim=64:kd.temperature=2", "resnet14-resnet8", 0].settings
    assert settings["kd"] == {"ce": 0.1, "kd": 0.9, "temperature": 2.0} and settings["crd"]["dim"] == 64
    assert made.cells["kd", "resnet14-resnet8", 0].settings["temperature"] == 4.0
    for text, words in {
        "crd+kd.dkd.beta=2": "unknown setting of method 'crd.kd' 'dkd.beta'",
        "crd+kd.kd.temprature=2": "did you mean temperature",
        "crd+kd.kd=2": "name a setting of kd, as in kd.KEY",
        "crd+kd=2": "write METHOD.key=value",
        "crd+kd.kd.ce=0.0": "is that of its first method, crd; leave it out",
    }.items():
        with pytest.raises(UserError, match=words):
            plan(table, zoo, methods=("crd+kd",), overrides=(text,))


def test_a_method_that_wants_two_views_is_told_where_it_gets_them(table: str, zoo: Zoo) -> None:
    with pytest.raises(UserError, match=r"two views .* digits-demo gives one; .* digits-mlld-demo"):
        plan(table, zoo, methods=("mlld",))


def test_a_text_longer_than_the_models_positions_is_refused_before_anything_runs(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra [text] is not installed")
    protocol = "extends: grammar-demo\nname: long\nversion: 1\nmax_length: 600\n"
    table = "name: t\ntitle: t\nextra: text\npairs: [bert_l4_h64-bert_l2_h64]\nmethods: [student]\n"
    (tmp_path / "p.yaml").write_text(protocol)
    (tmp_path / "t.yaml").write_text(f"{table}presets: {{paper: {{protocol: p.yaml, seeds: [0]}}}}\n")
    line = r"^protocol long keeps 600 tokens of a text, network 'bert_l4_h64' has 512 positions; [^\n]*512 or less$"
    with pytest.raises(UserError, match=line):
        make(Request(str(tmp_path / "t.yaml")), Workspace(CPU, tmp_path, tmp_path, tmp_path))


def test_fewer_images_than_a_batch_are_refused_where_incomplete_batches_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path)
    with pytest.raises(UserError, match="12 training samples here, fewer than a batch of 1024"):
        make(Request("table3-timm"), Workspace(torch.device("cpu"), tmp_path, tmp_path))
