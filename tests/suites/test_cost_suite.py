"""The benchmark suites run, and the cost table comes out of the file that they write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.cli.main import cli
from benchmarks.config.protocol import load_protocol
from benchmarks.cost import profile as profile_cell
from benchmarks.cost.measuring import Bench
from benchmarks.report import cost_suite as suite
from benchmarks.report.layouts import loop_table
from benchmarks.report.model import SECTIONS
from benchmarks.store.make_cell import Distillation, make_cell
from benchmarks.tasks import get_task
from benchmarks.training.optimizers import OPTIMIZERS
from kd_methods.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as `pytest benchmarks/ --benchmark-json FILE` writes it, of a few methods on a small pair."""
    file = tmp_path_factory.mktemp("costs") / "costs.json"
    chosen = ["--methods", "student,kd,simkd,mlld", "--pairs", "resnet14-resnet8", "--batch-size", "8", "--rounds", "2",
              "--group", "student,kd", "--loader-workers", "1"]  # fmt: skip
    suites = ["benchmarks/suites/test_training_step.py", "benchmarks/suites/test_loop.py"]
    command = [sys.executable, "-m", "pytest", *suites,
               "--benchmark-only", *chosen, "--benchmark-json", str(file), "-p", "no:cacheprovider"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return file


def test_every_figure_is_there_and_adds_up(costs: Path):
    methods = suite.read(costs).pairs["resnet14-resnet8"]
    assert list(methods) == ["student", "kd", "simkd", "mlld"]
    for name, measured in methods.items():
        facts = measured.facts
        assert set(vars(facts.split)) == set(SECTIONS)
        assert len(facts.turns) == 2 and min(min(turn) for turn in facts.turns) > 0
        assert facts.own_operations > 0 and bool(facts.teacher_operations) == (name != "student")
        assert set(facts.memory.by_part.model_dump()) == set(SECTIONS) and facts.machine.versions.torch
        assert set(measured.inference) == {1, 256}
    student, simkd, mlld = methods["student"], methods["simkd"], methods["mlld"]
    assert student.facts.extra_train_params == student.facts.extra_inference_params == 0
    assert simkd.facts.extra_inference_params > 0 and simkd.inference[1].macs > student.inference[1].macs
    assert mlld.facts.own_operations > 1.9 * methods["kd"].facts.own_operations, "it sees two views of each image"
    assert mlld.inference == student.inference, "the plain student is measured once"


def test_the_loop_is_measured_beside_the_baseline(costs: Path):
    facts = suite.read(costs)
    [loop], [memory] = facts.loops, facts.memories
    assert loop.group == memory.group == ["student", "kd"] and len(loop.turns) == 2
    for name, (least, middle, greatest) in loop.ratios.model_dump().items():
        ratios = [turn.baseline / getattr(turn, name) for turn in loop.turns]
        assert (least, greatest) == (min(ratios), max(ratios)) and least <= middle <= greatest
    assert loop.share_of_fastest[0] > 0 and loop.operations > 0 and 0.5 < sum(loop.operators.values()) <= 1
    assert 0 < memory.bytes.peak <= memory.bytes.bound
    measured = json.loads(costs.read_text())
    assert not {"node", "load"} & measured["machine_info"].keys(), "what tells of a machine stays as it is"
    assert all(len(figure["extra_info"]["load"]) == 3 for figure in measured["benchmarks"])


def test_table6_is_rendered_from_the_file(costs: Path, tmp_path: Path):
    table = tmp_path / "table1.csv"
    table.write_text("row,pair,mean_last\nstudent,resnet14-resnet8,70.1\nkd,resnet14-resnet8,71.5\nkd,other,1\n")
    result = CliRunner().invoke(cli, ["table6", str(costs), "--accuracy", str(table), "--output", str(tmp_path)])
    assert result.exit_code == 0 and "no plot" not in result.output, result.exception
    folder = tmp_path / "tables" / "table6"
    names = {file.name for file in folder.iterdir()}
    stem = "table6-resnet14-resnet8"
    figures = (f"-{name}.{kind}" for name in ("split", "memory", "accuracy") for kind in ("pdf", "png"))
    ends = (".tex", ".md", *figures)
    assert names == {f"{stem}{end}" for end in ends} | {"table6-loop.tex", "table6-loop.md"}
    assert re.search(r"\d\.\d\d\{\\,\(\d\.\d\d to \d\.\d\d\)\}", (folder / "table6-loop.tex").read_text())
    page = (folder / "table6-loop.md").read_text()
    assert "| resnet14-resnet8, fp32 |" in page and "2 cells that share the teacher's pass: student, kd" in page
    text = (folder / f"{stem}.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| KD |")).split("|")[2:-1]
    assert len(row) == len(suite.HEADS) and row[1].strip().startswith("1.00"), "KD beside itself"
    assert sum(int(cell) for cell in row[2:8]) == 100
    assert (folder / f"{stem}.tex").read_text().count(r"\toprule") == 2, "two blocks of columns"


def test_a_table_without_the_pair_makes_no_plot_and_says_so(costs: Path, tmp_path: Path):
    table = tmp_path / "table1.csv"
    table.write_text("row,pair,mean_last\nkd,other,71.5\n")
    said = list[str]()
    files = suite.write(suite.read(costs), tmp_path / "table6", table, said.append)
    assert said == [
        f"no plot of accuracy against cost: {table} has no accuracy of what was measured on resnet14-resnet8"
    ]
    assert not any("accuracy" in file.name for file in files)


def test_a_wrong_file_is_one_clear_line(costs: Path, tmp_path: Path):
    other = tmp_path / "other.json"
    for content in ("", "[]", '{"benchmarks": []}', '{"benchmarks": [{"extra_info": {}, "stats": {}}]}'):
        other.write_text(content)
        with pytest.raises(UserError, match="--benchmark-json"):
            suite.read(other)
    with pytest.raises(UserError, match="--benchmark-json"):
        suite.read(tmp_path / "absent.json")
    measured = json.loads((ROOT / "benchmarks/suites/results/xeon-amx-2-threads/costs.json").read_text())
    kinds = [entry["extra_info"].get("kind") for entry in measured["benchmarks"]]
    step = kinds.index("training step")
    del measured["benchmarks"][step]["extra_info"]["memory"]["kind"]
    other.write_text(json.dumps(measured))
    with pytest.raises(UserError, match=r"other\.json: benchmarks\.\d+\.extra_info: memory\.kind: Field required"):
        suite.read(other)
    for kind, name, value in (
        ("training step", "split", {"data": 0.1}),
        ("training step", "split", dict.fromkeys(SECTIONS, 0.0)),
        ("loop", "turns", []),
        ("loop", "turns", [{"baseline": 0.2, "alone": 0.1, "group": 0.0}]),
        ("group memory", "bytes", {"peak": 1, "bound": 0}),
    ):
        measured = json.loads(costs.read_text())
        kinds = [entry["extra_info"].get("kind") for entry in measured["benchmarks"]]
        measured["benchmarks"][kinds.index(kind)]["extra_info"][name] = value
        other.write_text(json.dumps(measured))
        with pytest.raises(UserError, match=rf"other\.json: benchmarks\.\d+\.extra_info: {name}"):
            suite.read(other)
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="give a table's"):
        suite.accuracies(tmp_path / "no.csv", "p", {})


@pytest.mark.parametrize(
    "file", sorted((ROOT / "benchmarks/suites/results").glob("*/*.json")), ids=lambda file: file.stem
)
def test_committed_measurements_can_be_shown(file: Path, tmp_path: Path):
    measured = suite.read(file)
    assert measured.pairs or measured.loops


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS.mapping()))
def test_a_step_in_parts_is_the_step_of_the_loop(optimizer: str):
    """The same weights after it, bit for bit."""
    settings = {"delta": 0.05} if optimizer == "dot" else {"clip": 0.1}
    protocol = load_protocol("digits-demo").with_optimizer({"name": optimizer, **settings})
    data = get_task("digits").open(Path(), protocol, torch.device("cpu"))
    losses = []
    for whole in (True, False):
        bench = Bench([make_cell(protocol, "", "resnet8", Distillation("student"))], protocol, data)
        for _ in range(2):
            if whole:
                bench.step()
            else:
                for _, run in bench.sections():
                    run()
        losses.append(bench.student_run.student.state_dict())
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])


def test_profile_of_a_cell(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    command = ["profile", "kd", "resnet14-resnet8", "--batch-size", "8", "--output", str(tmp_path)]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.exception
    assert all(f"  {section}" in result.output for section in SECTIONS) and "images/s" in result.output
    assert "aten::" in result.output, "the operators"
    assert "ERROR" not in capfd.readouterr().err, "of the profiler's library: no GPU on a CPU"
    folder = tmp_path / "profiles"
    trace = folder / "kd-resnet14-resnet8.trace.json"
    timeline, starts = profile_cell.memory_timeline(trace, "cpu")
    assert list(starts) == list(SECTIONS) and list(starts.values()) == sorted(starts.values())
    assert max(live for _, live in timeline) > 8 * 16 * 32 * 32 * 4, "one activation of the batch at least"
    assert (folder / "kd-resnet14-resnet8.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "kd-resnet14-resnet8.txt").read_text().startswith("kd on resnet14-resnet8, batch 8")


@pytest.mark.parametrize(
    ("method", "pair", "message"),
    [
        ("kdd", "resnet14-resnet8", "did you mean"),
        ("kd", "resnet14", "write teacher-student"),
        ("kd", "resnet14-resnet7", "unknown network 'resnet7'; did you mean"),
        ("fsp", "wrn_40_2-resnet8", "equal channels"),
    ],
)
def test_what_cannot_be_profiled_is_one_clear_line(tmp_path: Path, method: str, pair: str, message: str):
    result = CliRunner().invoke(cli, ["profile", method, pair, "--output", str(tmp_path)])
    assert isinstance(result.exception, UserError) and message in str(result.exception)


@pytest.mark.slow
def test_the_harness_suites_run(tmp_path: Path):
    file = tmp_path / "harness.json"
    command = [sys.executable, "-m", "pytest", "benchmarks/suites/test_harness.py", "--benchmark-only",
               "--rows", "3", "--benchmark-json", str(file), "-p", "no:cacheprovider"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = json.loads(file.read_text())["benchmarks"]
    assert {entry["group"] for entry in entries} == {"data pipeline", "table", "start-up"}


def test_ratio_and_throughput_have_one_estimator():
    """KD's multiple of itself is 1, and images/s is KD's times the multiple, in every row."""
    methods = suite.read(ROOT / "benchmarks/suites/results/xeon-amx-2-threads/costs.json").pairs["resnet56-resnet20"]
    rows = {line.label: line.cells for block in suite.layout("resnet56-resnet20", methods).blocks for line in block}
    kd = float(rows["KD"][0].value)
    assert rows["KD"][1].value == "1.00"
    for title, cells in rows.items():
        if cells:
            assert float(cells[0].value) == pytest.approx(kd * float(cells[1].value), abs=0.5 + 0.006 * kd), title
            assert sum(int(cell.value) for cell in cells[2:8]) == 100, title


def test_the_multiple_is_the_median_of_turns_and_its_spread_is_shown():
    facts = {"method": "dkd", "title": "DKD", "split": dict.fromkeys(SECTIONS, 1.0)}
    measured = suite.MeasuredMethod(facts, [(1.0, 2.0), (1.2, 2.0), (1.6, 2.0)], {})
    assert (measured.ratio, measured.spread) == (0.6, pytest.approx(0.15))
    assert suite.reference_seconds({"dkd": measured}) == 1.2
    assert suite.percentages({"a": 0.335, "b": 0.335, "c": 0.33}) == {"a": 34, "b": 33, "c": 33}


def test_what_a_compiler_names_is_one_entry():
    page = loop_table.by_operator({"aten::add": 0.3, "## Call CompiledFxGraph fxe5 ##": 0.3, "triton_0": 0.1})
    assert page == {"compiled code": pytest.approx(0.4), "aten::add": 0.3}
