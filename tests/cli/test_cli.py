"""The command line: quick answers, and for every mistake one clear line and exit code 2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import stores
from helpers.command_line import Call, python, refused

from benchmarks.cli import main as cli
from benchmarks.common import devices
from benchmarks.config.protocol import protocol_names
from benchmarks.config.table_spec import load_table, table_names
from benchmarks.networks import build_network
from kd_methods import registry

REPO = Path(__file__).parents[2]
TABLE = """\
name: mine
title: "My table"
pairs: [resnet14-resnet8]
methods: [student, kd, dkd]
presets:
  demo: {protocol: digits-demo, seeds: [0]}
"""
DEMO = ("table2", "--preset", "demo")


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("--help",),
        ("table2", "--help"),
        ("show", "table", "table2"),
        ("show", "protocol", "cifar100-short"),
        ("cite", "table2"),
        pytest.param(
            ("show", "method", "dkd"),
            marks=pytest.mark.xfail(strict=True, reason="show method imports the method's file and with it torch"),
        ),
    ],
)
def test_quick_answers_do_not_import_torch(arguments: tuple[str, ...]) -> None:
    result = python(*arguments, options=("-X", "importtime"))
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    heavy = {"torch", "torchvision", "timm", "sklearn", "scipy", "pandas", "matplotlib"}
    assert "click" in imported and not heavy & imported


def test_a_plan_begins_before_torch_and_goes_on_before_the_libraries_of_networks(tmp_path: Path) -> None:
    """The heading waits for nothing; the protocol, for torch alone of what takes long to import."""
    places = ("--data-root", str(tmp_path), "--output", str(tmp_path / "results"))
    command = [sys.executable, "-X", "importtime", "-u", "-m", "benchmarks", "table1", "--dry-run", *places]
    imported: set[str] = set()
    before_heading: set[str] | None = None
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("table1: "):
                before_heading = set(imported)
            elif not line.startswith("import time:"):
                break
            imported.add(line.rpartition("|")[2].strip())
        process.kill()
    libraries = {"torchvision", "timm", "transformers", "evaluate", "sympy", "sklearn", "pandas", "matplotlib"}
    assert before_heading and "torch" not in before_heading
    assert line.startswith("  cifar100-crd240") and "torch" in imported and not libraries & imported


def test_list_names_everything() -> None:
    text = python("list").stdout
    for name in [*table_names(), *protocol_names(), *registry.index()]:
        assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), name
    assert "presets paper, short, demo" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tabel2",), "unknown table or command 'tabel2'; did you mean table2"),
        (("docter",), "did you mean doctor"),
        (("absent.yaml",), "unknown table 'absent.yaml'"),
        (("table2", "--preset", "papper"), "unknown preset 'papper'; did you mean paper"),
        ((*DEMO, "--methods", "kd,dkdd"), "unknown method 'dkdd'; did you mean dkd"),
        ((*DEMO, "--pairs", "wrn_16_2-resnet9"), "unknown pair 'wrn_16_2-resnet9'; did you mean wrn_16_2-resnet8"),
        ((*DEMO, "--set", "kd.temprature=2"), "unknown setting of method 'kd' 'temprature'; did you mean temperature"),
        ((*DEMO, "--set", "kdd.temperature=2"), "did you mean kd"),
        ((*DEMO, "--set", "kd.temperature=warm"), "kd.temperature"),
        ((*DEMO, "--set", "kd.temperature=.inf"), "kd.temperature"),
        ((*DEMO, "--set", "kd"), "write METHOD.key=value"),
        ((*DEMO, "--seeds", "0,one"), "--seeds 0,one: give whole numbers"),
        ((*DEMO, "--epochs", "many"), "'--epochs'"),
        ((*DEMO, "--epochs", "0"), "--epochs 0: give at least 1"),
        ((*DEMO, "--holdout", "-1"), "'--holdout'"),
        ((*DEMO, "--holdout", "5000"), "--holdout 5000: the training set has 1437 samples"),
        ((*DEMO, "--device", "cuda:99"), "--device cuda:99: this machine has"),
        ((*DEMO, "--device", "gpu"), "--device gpu: give auto, cpu, cuda or cuda:N"),
        ((*DEMO, "--plugin", "absent.py"), "--plugin absent.py: there is no such file"),
        ((*DEMO, "--presett", "demo"), "No such option"),
        (("table2", "table1"), "unexpected extra argument"),
        (("--verbose",), "No such option"),
        (("show", "method"), "show method takes a name"),
        (("show", "methods", "kd"), "show methods takes no name"),
        (("show", "metods", "kd"), "'metods' is not one of"),
        (("show", "method", "dkd", "--pair", "resnet56-resnet21"), "did you mean resnet32"),
        (("show", "method", "fsp", "--pair", "vgg13-MobileNetV2"), "maps of equal channels"),
        (("show", "table", "table2", "--pair", "nonsense"), "--pair is for show method"),
        (("teachers", "add", "resnet20-chenyaofo", "none.pt", "--network", "resnet56"), "leave out --network"),
        (("teachers", "add", "mine", "none.pt", "--network", "resnet20", "--expect", "nan"), "teacher expected nan"),
        (("teachers", "train", "bert_l2_h32", "--protocol", "digits-demo"), "reads text, task digits has images"),
        (("show", "method", "dkdd"), "unknown method 'dkdd'; did you mean dkd"),
        (("show", "table", "tabel1"), "did you mean table1"),
        (("show", "protocol", "cifar100-crd24"), "did you mean cifar100-crd240"),
        (("render", "table2", "--preset", "demo"), "no table 'table2-demo'"),
        (("render", "tabel2"), "did you mean table2"),
        (("teachers", "lst"), "No such command"),
        (("teachers", "fetch", "resnet56-crdd"), "did you mean resnet56-crd"),
        (("teachers", "verify"), "no teacher is installed"),
        (("teachers", "train", "resnet9"), "unknown network 'resnet9'; did you mean ResNet9"),
        (("teachers", "train", "resnet8", "--protocol", "digits"), "did you mean digits-demo"),
        (("teachers", "add", "resnet8", "absent.pth"), "there is no file absent.pth"),
        (("teachers", "add", "resnet8", "absent.pth", "--mean", "a,b"), "'a,b' is no list of numbers"),
        (("teachers", "add", "resnet8"), "Missing argument"),
        (("teachers", "add", "resnet8", "absent.pth", "--std", ","), "--std ',' names nothing"),
        ((*DEMO, "--methods", ",,"), "--methods ',,' names nothing; leave it out"),
        ((*DEMO, "--pairs", " "), "--pairs ' ' names nothing"),
        ((*DEMO, "--seeds", ""), "--seeds '' names nothing"),
        ((*DEMO, "--seeds", "-1"), "--seeds -1: give whole numbers from 0 to 4294967295"),
        ((*DEMO, "--seeds", "4294967296"), "give whole numbers from 0"),
        ((*DEMO, "--seeds", "1.5"), "give whole numbers from 0"),
        ((*DEMO, "--epochs", "-3"), "--epochs -3: give at least 1"),
        ((*DEMO, "--epochs", "9" * 400), "epochs: Input should be less than or equal to 1000000"),
        ((*DEMO, "--holdout", "9" * 400), "the training set has 1437 samples"),
        ((*DEMO, "--device", "cpu", "--precision", "fp16"), "precision fp16 is for GPUs; on a CPU use bf16"),
        ((*DEMO, "--device", "cpu", "--precision", "tf32"), "precision tf32 is for GPUs; on a CPU use bf16"),
        ((*DEMO, "--sync-bn"), "sync_bn: for several processes (world_size, --processes)"),
        (("profile", "kd", "resnet14-resnet8", "--batch-size", "0"), "'--batch-size'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(call: Call, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(call, *arguments)


@pytest.mark.parametrize("arguments", [DEMO, ("teachers", "train", "resnet8")])
def test_torchrun_is_refused(call: Call, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    """Each of its processes would train the whole table."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert "run the command once, without them, with --processes 4" in refused(call, *arguments)
    if arguments == DEMO:  # on machines of a queue that sets such variables
        assert "did you mean kd" in refused(call, *arguments, "--shard", "1/8", "--methods", "kdd")


def test_arithmetic_that_no_protocol_says_is_refused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.overruled.cache_clear()
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    try:
        for command in (DEMO, ("teachers", "train", "resnet8", "--protocol", "digits-demo"),
                        ("profile", "kd", "resnet14-resnet8")):  # fmt: skip
            assert "ONEDNN_DEFAULT_FPMATH_MODE=BF16: " in refused(call, *command, "--device", "cpu")
        assert not (tmp_path / "results").exists()
        code, out, _ = call("doctor")
        assert (
            code == 0 and "fp32 overruled by ONEDNN_DEFAULT_FPMATH_MODE=BF16" in out and "nothing can be run: " in out
        )
    finally:
        devices.overruled.cache_clear()


def test_nothing_is_left_behind_by_bad_input(call: Call, tmp_path: Path) -> None:
    refused(call, *DEMO, "--methods", "dkdd")
    refused(call, *DEMO, "--set", "kd.temprature=2")
    assert not (tmp_path / "results").exists() and not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("arguments", [("tabel2",), ("table2", "--presett", "demo")])
def test_bad_input_ends_the_process_with_2(arguments: tuple[str, ...]) -> None:
    result = python(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_a_teacher_that_diverges_ends_with_1(call: Call, tmp_path: Path) -> None:
    protocol = tmp_path / "p.yaml"
    protocol.write_text("extends: digits-demo\nname: p\nversion: 1\nepochs: 1\noptimizer: {lr: 1.0e+30}\n")
    code, out, err = call("teachers", "train", "resnet8", "--protocol", protocol, "--device", "cpu")
    assert (code, out) == (1, ""), err
    assert err.splitlines()[-1].startswith("not complete: the teacher resnet8 diverged in training: loss term"), err


@pytest.mark.parametrize("line", ["sys.exit(0)", "raise SystemExit", "raise GeneratorExit", "1 / 0", "import absent"])
def test_a_plugin_that_ends_the_process_is_one_clear_line(call: Call, tmp_path: Path, line: str) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(f"import sys\n{line}\n")
    assert f"--plugin {plugin} cannot be imported: " in refused(call, *DEMO, "--plugin", plugin)


@pytest.mark.parametrize("error", [RuntimeError("2\nlines"), SystemExit(0), RecursionError(), OSError(5, "I/O error")])
def test_what_nobody_foresaw_is_one_line_and_a_log(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("benchmarks.report.collect.render", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = call("render", "table2", "--output", tmp_path / "results")
    assert (code, out, len(err.splitlines())) == (3, "", 1) and type(error).__name__ in err, err
    (log,) = tmp_path.glob("error-*.log")
    assert str(log) in err and "Traceback" in log.read_text() and "'render'" in log.read_text()
    (tmp_path / "results").mkdir()
    assert call("render", "table2", "--output", tmp_path / "results")[0] == 3
    assert len(list((tmp_path / "results").glob("error-*.log"))) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [("list",), ("--help",)])
def test_an_output_that_nobody_takes_is_one_line(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, cwd=REPO, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert result.returncode == 1
    line = "error: standard output: No space left on device; not everything was shown, and what was saved is kept\n"
    assert result.stderr == line
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == 1 and err.startswith("error: standard output: Broken pipe; "), err
    assert len(err.splitlines()) == 1


def test_a_locale_without_a_letter_ends_nothing() -> None:
    code = (
        "import benchmarks.common.console as c\nwith c.patient_streams() as lost: print(chr(0x2217))\nassert not lost"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=environment, capture_output=True, timeout=120)
    assert (result.stdout, result.stderr) == (b"\\u2217\n", b"")


def test_a_row_to_highlight_that_there_is_not_is_said_before_anything_runs(call: Call) -> None:
    assert "--highlight nosuch: the table has no such row; it has" in refused(call, *DEMO, "--highlight", "nosuch")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[student, kd, dkd]", "[student, kd", "line 5"),
        ("title:", "titel:", "line 2: titel: unknown key"),
        ("[0]", "zero", "line 6: presets.demo.seeds"),
        ("resnet14-resnet8", "resnet14", "line 3: pairs: 'resnet14' is not of the form teacher-student"),
        ("digits-demo", "digits-demoo", "unknown protocol 'digits-demoo'; did you mean digits-demo"),
        ("digits-demo", "absent.yaml", "absent.yaml'; known: cifar10-feature-only"),
        ("resnet14-resnet8", "resnet14-resnet9", "unknown network 'resnet9'; did you mean ResNet9"),
    ],
)
def test_a_wrong_table_of_ones_own_is_one_clear_line(
    call: Call, tmp_path: Path, old: str, new: str, words: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE.replace(old, new))
    assert words in refused(call, path, "--preset", "demo")


def test_a_wrong_protocol_of_ones_own_names_file_and_line(call: Call, tmp_path: Path) -> None:
    protocol = tmp_path / "p.yaml"
    protocol.write_text("extends: digits-demo\nname: p\nepochs: [1\nflip: true\n")
    (tmp_path / "mine.yaml").write_text(TABLE.replace("digits-demo", f"'{protocol}'"))
    line = refused(call, tmp_path / "mine.yaml", "--preset", "demo")
    assert f"{protocol} line 4" in line
    assert f"{protocol} line 4" in refused(call, "show", "protocol", protocol)


def test_a_rate_for_an_unknown_student_is_refused_for_teachers_too(call: Call, tmp_path: Path) -> None:
    protocol = tmp_path / "p.yaml"
    protocol.write_text("extends: digits-demo\nname: p\nversion: 1\nlr_by_student: {Resnet8: 0.5}\n")
    line = refused(call, "teachers", "train", "resnet8", "--protocol", protocol)
    assert f"{protocol} line 4: lr_by_student.Resnet8: " in line and "did you mean resnet8" in line


def test_missing_data_says_where_to_put_it(call: Call, tmp_path: Path) -> None:
    empty = tmp_path / "deep" / "empty"
    empty.mkdir(parents=True)
    started = time.perf_counter()
    line = refused(call, "table1", "--preset", "short", "--pairs", "resnet56-resnet20", "--data-root", empty)
    assert str(empty) in line and "cifar-100-python" in line and "--data-root" in line
    assert time.perf_counter() - started < 20


def test_damaged_data_is_named(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    (folder / "train").write_bytes(b"half a file")
    line = refused(call, "table1", "--preset", "short", "--data-root", tmp_path / "data")
    assert str(folder) in line and "damaged" in line
    assert (folder / "train").read_bytes() == b"half a file"


def checkpoint(path: Path, network: str) -> Path:
    torch.save(build_network(network, 10).module.state_dict(), path)
    return path


def test_a_checkpoint_of_another_architecture_is_one_clear_line(call: Call, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "a.pth", "wrn_16_1")
    line = refused(call, "teachers", "add", "resnet8", file, "--task", "digits")
    assert str(file) in line and "another architecture" in line
    assert "unknown network 'mine'" in refused(call, "teachers", "add", "mine", file, "--task", "digits")
    assert not (tmp_path / "checkpoints").exists()


def test_a_truncated_checkpoint_is_one_clear_line(call: Call, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "a.pth", "resnet8")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    line = refused(call, "teachers", "add", "resnet8", file, "--task", "digits")
    assert str(file) in line and "truncated" in line


def test_an_installed_teacher_that_was_truncated_is_one_clear_line(call: Call, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "a.pth", "resnet14")
    code, out, _ = call("teachers", "add", "resnet14", file, "--task", "digits", "--expect", "9.5")
    assert code == 0 and "added teacher 'resnet14'" in out and "9.50 (given)" in out
    assert "resnet14" in call("teachers", "list")[1]
    installed = tmp_path / "checkpoints" / "digits" / "resnet14.pt"
    installed.write_bytes(installed.read_bytes()[:1000])
    (tmp_path / "mine.yaml").write_text(TABLE)
    assert str(installed) in refused(call, tmp_path / "mine.yaml", "--preset", "demo")


@pytest.mark.parametrize("kind", ["below a file", "a file"])
def test_an_output_folder_that_cannot_be_is_one_clear_line(call: Call, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    output = file / "results" if kind == "below a file" else file
    (tmp_path / "mine.yaml").write_text(TABLE)
    line = refused(call, tmp_path / "mine.yaml", "--preset", "demo", "--output", output)
    assert f"cannot write {output}" in line and "choose another folder" in line
    assert file.read_text() == "precious"


def test_a_checkpoint_folder_that_cannot_be_is_one_clear_line(call: Call, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "a.pth", "resnet8")
    arguments = ("teachers", "add", "resnet8", source, "--task", "digits", "--checkpoints", source / "below")
    assert f"cannot write {source / 'below'}" in refused(call, *arguments)


def test_damaged_entries_of_teachers_are_one_clear_line(call: Call, tmp_path: Path) -> None:
    entries = tmp_path / "checkpoints" / "teachers.json"
    entries.parent.mkdir()
    entries.write_text('{"mine": ')
    assert str(entries) in refused(call, "teachers", "list")
    assert entries.read_text() == '{"mine": '


@pytest.mark.parametrize("content", ['{"mine": {"network": "resnet8"}}', "[]", '{"mine": 3}'])
def test_entries_of_another_form_are_one_clear_line(call: Call, tmp_path: Path, content: str) -> None:
    entries = tmp_path / "checkpoints" / "teachers.json"
    entries.parent.mkdir()
    entries.write_text(content)
    assert str(entries) in refused(call, "teachers", "list")


def test_a_normalisation_of_another_length_is_refused(call: Call, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "a.pth", "resnet8")
    refused(call, "teachers", "add", "resnet8", file, "--task", "digits", "--mean", "0.5,0.5", "--std", "0.2,0.2")


@pytest.mark.parametrize("arguments", [(), ("teachers",)])
def test_a_bare_call_prints_the_help(call: Call, arguments: tuple[str, ...]) -> None:
    _, out, err = call(*arguments)
    assert "error:" not in err and len((out + err).splitlines()) > 5


@pytest.mark.parametrize("name", table_names())
def test_show_table(call: Call, name: str) -> None:
    code, out, _ = call("show", "table", name)
    assert code == 0 and out.startswith(f"{name}: ")
    paper, demo = (load_table(name).presets[preset].protocol for preset in ("paper", "demo"))
    assert f"preset demo: {demo}" in out and f"preset paper: {paper}" in out and "\nrows     " in out


@pytest.mark.parametrize("name", protocol_names())
def test_show_protocol(call: Call, name: str) -> None:
    code, out, _ = call("show", "protocol", name)
    assert code == 0 and out.startswith(f"{name} v") and "source: " in out and ", batch " in out


@pytest.mark.parametrize("name", list(registry.index()))
def test_show_method(call: Call, name: str) -> None:
    code, out, _ = call("show", "method", name)
    assert code == 0 and out.startswith(f"{name} v") and "missing from" not in out
    card = registry.card(name)
    assert card.formula in out and (f"{{{card.paper}," in out or not card.paper)
    for key in registry.get(name).Settings.model_fields:
        assert f"    {key} = " in out
    assert out.count("[our choice") == len(card.our_choice)


def test_show_method_names_the_published_settings(call: Call) -> None:
    _, out, _ = call("show", "method", "dkd")
    assert "beta = 2.0 for resnet56-resnet20, resnet110-resnet32" in out and "beta = 6.0 for wrn_40_2-wrn_16_2" in out


def test_show_method_counts_what_it_adds_on_a_pair(call: Call) -> None:
    """SimKD's projector at factor 2 on 64 channels: 1x1, 3x3, 1x1 convolutions and three batch-norms, all deployed."""
    parameters = 64 * 32 + 32 * 32 * 9 + 32 * 64 + 2 * (32 + 32 + 64)
    _, out, _ = call("show", "method", "simkd", "--pair", "resnet56-resnet20")
    assert f"{parameters:+,} in training, {parameters:+,} at inference" in out
    _, out, _ = call("show", "method", "crd+kd", "--pair", "resnet56-resnet20")
    assert "+16,640 in training, +0 at inference" in out and "tian2020crd" in out and "hinton2015kd" in out
    _, out, _ = call("show", "method", "kd", "--pair", "resnet56-resnet20")
    assert "has 278,324 parameters; +0 in training, +0 at inference" in out


def test_teachers_list_names_the_shipped_entries(call: Call) -> None:
    code, out, _ = call("teachers", "list")
    assert code == 0 and re.search(r"resnet56-crd +resnet56 +cifar100 +not installed +expects 72\.34", out)


def test_every_example_of_the_help_is_a_real_command(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert out.startswith("Usage: ./reproduce.sh TABLE|COMMAND [OPTIONS]\n")
    assert call("table2", "--help")[1].startswith("Usage: ./reproduce.sh TABLE [OPTIONS]\n")
    for line in re.findall(r"^ *\./reproduce\.sh (\S+)", out, re.MULTILINE):
        assert line in {*table_names(), *cli.cli.commands}, line


def test_environment_variables_name_the_folders_that_no_option_names(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, checkpoints, output, other = (tmp_path / f"my {name}" for name in ("data", "teachers", "output", "others"))
    for variable, folder in {"DATA": data, "CHECKPOINTS": checkpoints, "OUTPUT": output}.items():
        folder.mkdir()
        monkeypatch.setenv(f"KDBENCH_{variable}", str(folder))
    without_data = ("table1", "--preset", "short", "--device", "cpu")
    assert f"{data}" in refused(call, *without_data)
    assert f"{other}" in refused(call, *without_data, "--data-root", other)
    (checkpoints / "teachers.json").write_text('{"mine": ')
    assert f"{checkpoints / 'teachers.json'}" in refused(call, "teachers", "list")
    assert call("teachers", "list", "--checkpoints", other)[0] == 0
    stores.table(output, "student", "kd")
    assert call("render", stores.TABLE_FOLDER)[0] == 0
    assert f"in {other}" in refused(call, "render", "table2", "--output", other)


@pytest.mark.parametrize(("variable", "option"), [("KDBENCH_WORKERS", "--workers"), ("OMP_NUM_THREADS", "--threads")])
def test_environment_variables_say_how_many_compute(
    call: Call, monkeypatch: pytest.MonkeyPatch, variable: str, option: str
) -> None:
    monkeypatch.setenv(variable, "0")
    assert f"Invalid value for '{option}': 0 " in refused(call, *DEMO, "--dry-run")
