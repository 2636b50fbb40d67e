"""A small table of one's own, from the command line to LaTeX; everything happens in processes of their own."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from helpers.user_folder import PLUGIN, PROTOCOL, TABLE, UserFolder
from PIL import Image

TROUBLE = """
@kd_methods.register
class Chatty(Mine):
    card = Card(name="chatty", version=1, family="logit", title="Prints")

    def losses(self, *arguments):
        print("a loss", flush=True)
        return super().losses(*arguments)


@kd_methods.register
class Broken(Mine):
    card = Card(name="broken", version=1, family="logit", title="Breaks")

    def losses(self, *arguments):
        raise ValueError("in the method")


@kd_methods.register
class Endless(Mine):
    card = Card(name="endless", version=1, family="logit", title="Diverges")

    def losses(self, *arguments):
        found = super().losses(*arguments)
        return Losses(task={"task": found.total() * float("inf")})


@kd_methods.register
class Unfit(Mine):
    card = Card(name="unfit", version=1, family="logit", title="Is for no pair")

    def __init__(self, *arguments):
        raise kd_methods.errors.UserError("not for this pair")
"""
SUFFIXES = {
    "tiny.tex",
    "tiny-appendix.tex",
    "tiny.bib",
    "tiny.md",
    "tiny.csv",
    "tiny-cost.tex",
    "tiny-cost.md",
    "tiny-cost.csv",
    "tiny-runs.csv",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[UserFolder, tuple[int, str, str]]:
    """The table after its first run, and what that run said. Tests only add to it."""
    bench = UserFolder(tmp_path_factory.mktemp("end to end"))
    return bench, bench.run()


def copied(bench: UserFolder, folder: Path) -> UserFolder:
    """The same table and store in a folder where a test may spoil them."""
    copy = UserFolder(folder / "copy")
    copy.table.write_text(bench.table.read_text())
    shutil.copytree(bench.output, copy.output)
    return copy


def test_one_command_ends_with_the_tables(done: tuple[UserFolder, tuple[int, str, str]]) -> None:
    bench, (code, out, err) = done
    assert code == 0, err
    files = bench.files()
    assert set(files) == SUFFIXES
    assert out.strip() == files["tiny.md"].decode().strip()
    assert "13 cells to run, 0 in the store" in err and "tiny.tex" in err
    assert {status["state"] for status in bench.statuses()} == {"done"} and len(bench.statuses()) == 13

    lines = list(csv.DictReader(io.StringIO(files["tiny.csv"].decode())))
    shown = {(line["row"], line["pair"]): line for line in lines}
    pairs = ("resnet14-resnet8", "resnet14-wrn_16_1")
    assert set(shown) == {(row, pair) for row in ("teacher", "student", "kd", "block_kd") for pair in pairs}
    for (row, _), line in shown.items():
        assert 0 < float(line["value"]) <= 100 and (row == "teacher" or line["n"] == line["planned"] == "2")
    tex = files["tiny.tex"].decode()
    assert "not the paper's protocol" in tex and "protocol one-epoch" in tex and r"\toprule" in tex

    costs = list(csv.DictReader(io.StringIO(files["tiny-cost.csv"].decode())))
    assert len(costs) == 6 and all(float(line["images_per_second"]) > 0 for line in costs)
    extra = {(line["row"], line["pair"]): int(line["extra_train_params"]) for line in costs}
    assert extra["kd", pairs[0]] == 0 and extra["block_kd", pairs[0]] > 0
    assert {line["extra_inference_params"] for line in costs} == {"0"}


def test_a_table_tells_the_runs_values(done: tuple[UserFolder, tuple[int, str, str]]) -> None:
    bench, _ = done
    lines = csv.DictReader(io.StringIO(bench.files()["tiny.csv"].decode()))
    shown = {
        (line["row"], line["pair"]): [value for seed in (0, 1, 2) if (value := line.get(f"last.{seed}"))]
        for line in lines
    }
    for path in (bench.output / "runs").glob("*/cell.json"):
        record, status = json.loads(path.read_text()), json.loads((path.parent / "status.json").read_text())
        cell = record["cell"]
        if cell["teacher"]:
            pair = f"{cell['teacher']['network']}-{cell['student']}"
            assert float(shown[cell["method"]["name"], pair][cell["seed"]]) == pytest.approx(
                status["last"]["top1"], abs=1e-3
            )


def test_the_second_run_computes_nothing_and_writes_the_same(done: tuple[UserFolder, tuple[int, str, str]]) -> None:
    bench, _ = done
    runs, files = bench.runs(), bench.files()
    code, _, err = bench.run()
    assert code == 0 and "cells to run" not in err and "measuring" not in err
    assert bench.runs() == runs and bench.files() == files


def test_render_from_another_folder_without_data_writes_the_same(
    done: tuple[UserFolder, tuple[int, str, str]], tmp_path: Path
) -> None:
    bench = copied(done[0], tmp_path)
    shutil.rmtree(bench.folder / "data")
    files = bench.files()
    for name in files:
        (bench.output / "tables" / "tiny-demo" / name).unlink()
    code, out, err = bench.call(
        "render", str(bench.table), "--preset", "demo", "--output", str(bench.output), cwd=tmp_path
    )
    assert code == 0, err
    assert bench.files() == files and out.startswith(files["tiny.md"].decode().strip()[:40])


def test_a_run_that_is_missing_from_the_store_is_shown_as_missing_and_made_up_for(
    done: tuple[UserFolder, tuple[int, str, str]], tmp_path: Path
) -> None:
    bench = copied(done[0], tmp_path)
    files = bench.files()
    for path in (bench.output / "runs").glob("*/cell.json"):
        if json.loads(path.read_text())["label"] == "kd/resnet14-resnet8/s1":
            shutil.rmtree(path.parent)
    render = ("render", str(bench.table), "--preset", "demo", "--output", str(bench.output))
    code, _, err = bench.call(*render)
    assert code == 1 and err.splitlines()[-1] == "not complete: 1 of 12 cells without a result: 1 left out", err
    lines = {(x["row"], x["pair"]): x for x in csv.DictReader(io.StringIO(bench.files()["tiny.csv"].decode()))}
    assert (lines["kd", "resnet14-resnet8"]["n"], lines["kd", "resnet14-resnet8"]["missing"]) == ("1", "1")
    code, _, err = bench.run()
    assert code == 0 and "1 cell to run, 12 in the store" in err
    assert bench.files()["tiny.csv"] == files["tiny.csv"], "the same seed ends in the same figure"


def test_teachers_are_trained_under_their_own_protocol(tmp_path: Path) -> None:
    """Students on wrong labels, of which the teacher's data has none; the caption says how the teacher was trained."""
    bench = UserFolder(tmp_path / "noisy")
    noisy = PROTOCOL.replace("one-epoch", "noisy") + "label_noise: 0.5\nteachers_from: one epoch.yaml\n"
    (bench.folder / "noisy.yaml").write_text(noisy)
    bench.table.write_text(TABLE.format(protocol="noisy.yaml"))
    chosen = ["--methods", "kd", "--pairs", "resnet14-resnet8", "--seeds", "0", "--no-cost"]
    code, out, err = bench.run("--dry-run", *chosen)
    assert code == 0, err
    code, out, err = bench.run(*chosen)
    assert code == 0, err
    noise = {label: cell["protocol"].get("label_noise") for label, cell in bench.cells().items()}
    assert noise == {"student/resnet14/s0": None, "kd/resnet14-resnet8/s0": 0.5}
    assert "Teacher ResNet-14: trained here under one-epoch v1, seed 0" in out
    assert "50% of the training labels exchanged" in out


@pytest.mark.slow
def test_mixed_images_and_averaged_weights_from_the_command_line_to_the_caption(tmp_path: Path) -> None:
    """What a run claims of its averaged weights is measured again on the student that it saved."""
    bench = UserFolder(tmp_path / "mixed")
    chosen = ["--methods", "student,dkd", "--seeds", "0", "--epochs", "1", "--no-cost"]
    code, out, err = bench.call("recipes", "--preset", "demo", *chosen, *bench.places)
    assert code == 0, err
    assert "mixup with shares from Beta(0.8, 0.8) or CutMix" in out and "moving averages (decay 0.95)" in out
    assert {cell["protocol"]["ema"] for cell in bench.cells().values()} == {0.95}
    code, out, err = bench.call("verify", str(bench.output), *bench.places[2:])
    assert code == 0 and "3 equal" in out, out + err


def test_folders_of_images_are_columns_and_may_be_moved(tmp_path: Path) -> None:
    """A cell knows the content of a folder, not its place: nothing is computed again where it lies elsewhere."""
    bench = UserFolder(tmp_path)
    for place, colour in (("first", 60), ("second/one", 200)):
        for split, count in (("train", 10), ("test", 3)):
            for name in ("a", "b"):
                (tmp_path / place / split / name).mkdir(parents=True)
                for i in range(count):
                    image = Image.new("RGB", (8, 8), (colour, 255 * (name == "a"), i))
                    image.save(tmp_path / place / split / name / f"{i}.png")
    tasks = ["folder:first", f"folder:{tmp_path / 'second' / 'one'}/"]
    table = "name: folders\ntitle: Folders\npairs: [resnet14-resnet8]\nmethods: [student, kd]\ntasks: {tasks}\n"
    table += "presets: {{demo: {{protocol: '{protocol}', seeds: [0]}}}}\n"
    bench.protocol.write_text(PROTOCOL.replace("256", "8"))
    bench.table.write_text(table.format(tasks=json.dumps(tasks), protocol=bench.protocol))
    code, _, err = bench.run("--no-cost")
    assert code == 0 and "6 cells to run" in err, err
    text = (bench.output / "tables" / "folders-demo" / "folders.md").read_text()
    assert "<br>first<br>" in text and "<br>one<br>" in text and "--" not in text.split("| KD")[1].splitlines()[0]
    assert {cell["task"] for cell in bench.cells().values()} == {"folder"}

    before = bench.runs()
    (tmp_path / "second").rename(tmp_path / "moved")
    bench.table.write_text(bench.table.read_text().replace("/second/", "/moved/"))
    code, _, err = bench.run("--no-cost")
    assert code == 0 and bench.runs() == before, err


def test_dry_run_prints_the_plan_and_runs_nothing(tmp_path: Path) -> None:
    bench = UserFolder(tmp_path / "a folder")
    code, out, err = bench.run("--dry-run", "--methods", "student,kd")
    assert code == 0 and out == ""
    for words in ("one-epoch v1 on digits: 1 epoch, batch 256", "rows student, kd; seeds 0, 1", "2 cells, 0 stored",
                  "no file installed: trained first", "GFLOP each", "9 cells to run on"):  # fmt: skip
        assert words in err, err
    assert "about " in err.splitlines()[-1]
    assert not bench.output.exists() and not (bench.folder / "checkpoints").exists()


def test_a_method_from_a_file(done: tuple[UserFolder, tuple[int, str, str]], tmp_path: Path) -> None:
    bench = copied(done[0], tmp_path)
    before = bench.runs()
    plugin = bench.folder / "my method.py"
    plugin.write_text(PLUGIN)
    arguments = ("--plugin", str(plugin), "--methods", "kd,mine", "--pairs", "resnet14-resnet8", "--no-cost")
    code, out, err = bench.run(*arguments)
    assert code == 0 and "2 cells to run, 3 in the store" in err and "Our Method" in out
    assert "Student (no KD)" not in out and "WRN-16-1" not in out, "what was not asked for is left out"
    rendered = bench.call("render", str(bench.table), "--preset", "demo", "--output", str(bench.output))[1]
    assert "Student (no KD)" in rendered and "WRN-16-1" in rendered, "what the table showed before is still there"
    assert {name: bench.runs()[name] for name in before} == before
    cell = bench.cells()["mine/resnet14-resnet8/s0"]
    assert cell["plugins"] == {"method:mine": hashlib.sha256(PLUGIN.encode()).hexdigest()}
    assert bench.cells()["kd/resnet14-resnet8/s0"]["plugins"] == {}

    plugin.write_text(PLUGIN + "# changed\n")
    code, _, err = bench.run(*arguments, "--seeds", "0", "--dry-run")
    assert code == 0 and "1 cell to run" in err, "another file is another method"


def test_a_method_from_a_file_has_a_cost(tmp_path: Path) -> None:
    bench = UserFolder(tmp_path / "a folder")
    plugin = bench.folder / "mine.py"
    plugin.write_text(PLUGIN)
    code, _, err = bench.run(
        "--plugin", str(plugin), "--methods", "mine", "--pairs", "resnet14-resnet8", "--seeds", "0"
    )
    assert code == 0, err
    assert "Our Method" in bench.files()["tiny-cost.md"].decode()


def test_what_is_missing_of_a_table_is_said_and_ends_with_1(tmp_path: Path) -> None:
    bench = UserFolder(tmp_path / "a folder")
    plugin = bench.folder / "trouble.py"
    plugin.write_text(PLUGIN + TROUBLE)
    chosen = ("--plugin", str(plugin), "--pairs", "resnet14-resnet8", "--seeds", "0", "--no-cost")
    code, out, err = bench.run(*chosen, "--methods", "kd,broken,endless,unfit")
    assert (code, err.splitlines()[-1]) == (1, "not complete: 2 of 5 cells without a result: 1 failed, 1 diverged"), err
    assert "KD" in out and "tiny.md" in bench.files(), "the table is written all the same"
    code, _, err = bench.run(*chosen, "--methods", "kd,unfit")
    assert (code, "not complete" in err) == (0, False), "a method that is not for a pair is an answer"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("closed", [pytest.param("stdout", marks=pytest.mark.slow), "stderr"])
def test_a_stream_that_takes_nothing_is_no_cell_s_failure(tmp_path: Path, closed: str) -> None:
    """The output is on a full disk, or was piped into something that has ended."""
    bench = UserFolder(tmp_path / "a folder")
    plugin = bench.folder / "trouble.py"
    plugin.write_text(PLUGIN + TROUBLE)
    chosen = ("--plugin", str(plugin), "--methods", "chatty", "--pairs", "resnet14-resnet8", "--seeds", "0")
    with Path("/dev/full").open("w") as full:
        streams = {"stdout": full} if closed == "stdout" else {}
        process = bench.start(str(bench.table), "--preset", "demo", *bench.places, *chosen, **streams)
        if closed == "stderr":
            assert process.stderr
            process.stderr.close()
        out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert {status["state"] for status in bench.statuses()} == {"done"} and len(bench.statuses()) == 2
    assert {"tiny.md", "tiny-cost.md"} <= set(bench.files())
    if closed == "stdout":
        assert err.splitlines()[-1].startswith("error: standard output: No space left on device; "), err
    else:
        assert "Prints" in out


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    bench = UserFolder(tmp_path / "a folder")
    arguments = ("--methods", "student", "--pairs", "resnet14-resnet8", "--seeds", "0", "--epochs", "12", "--no-cost")
    process = bench.start(str(bench.table), "--preset", "demo", *bench.places, *arguments)
    try:
        deadline = time.monotonic() + 120
        while not any(status.get("epoch", 0) >= 2 for status in bench.statuses()):
            assert process.poll() is None and time.monotonic() < deadline, "it never came to its second epoch"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "the same command goes on" in err and "Traceback" not in err
    (status,) = bench.statuses()
    assert status["state"] == "interrupted" and 2 <= status["epoch"] < 12
    (path,) = (bench.output / "runs").glob("*/metrics.json")
    before = json.loads(path.read_text())
    assert len(before) == status["epoch"]

    code, _, err = bench.run(*arguments)
    assert code == 0, err
    (status,) = bench.statuses()
    after = json.loads(path.read_text())
    assert status["state"] == "done" and [record["epoch"] for record in after] == list(range(1, 13))
    assert after[: len(before)] == before, "it went on, it did not begin again"
    assert f"1 cell to run (1 of them from {len(before)} saved epochs on), 0 in the store" in err
    assert "12 epochs instead of 1" in bench.files("tiny-demo-epochs12")["tiny.md"].decode()


def test_a_damaged_checkpoint_is_named_and_its_cell_begins_again(
    done: tuple[UserFolder, tuple[int, str, str]], tmp_path: Path
) -> None:
    bench = copied(done[0], tmp_path)
    (cell,) = (path for path in (bench.output / "runs").glob("*/cell.json") if label(path) == "kd/resnet14-resnet8/s0")
    (cell.parent / "status.json").write_text('{"state": "interrupted", "epoch": 0, "epochs": 1}')
    (cell.parent / "checkpoint.pt").write_bytes(b"PK\x03\x04 half a file")
    code, _, err = bench.run()
    (named,) = (line for line in err.splitlines() if str(cell.parent / "checkpoint.pt") in line)
    assert code == 0 and "starts again" in named, err
    assert bench.files() == done[0].files()


def test_runs_that_are_spoilt_are_named_and_computed_again_and_the_rest_goes_on(
    done: tuple[UserFolder, tuple[int, str, str]], tmp_path: Path
) -> None:
    """A status, a swapped pair of folders, and a teacher whose weights changed by one bit, found where it teaches."""
    bench = copied(done[0], tmp_path)
    runs = {label(path): path.parent for path in (bench.output / "runs").glob("*/cell.json")}
    teacher = runs["student/resnet14/s0"]
    content = (teacher / "student.pt").read_bytes()
    place = len(content) // 2
    (teacher / "student.pt").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    code, _, err = bench.run()
    assert code == 0 and "damaged" not in err, "nobody needs the teacher"

    half = runs["kd/resnet14-resnet8/s0"] / "status.json"
    half.write_text(half.read_text()[:50])
    one, two = (runs[f"{method}/resnet14-resnet8/s1"] for method in ("kd", "block_kd"))
    one.rename(tmp_path / "swap")
    two.rename(one)
    (tmp_path / "swap").rename(two)
    code, _, err = bench.run()
    assert code == 0, err
    for path, words in (
        (half, "damaged"), (one, "another cell"), (two, "another cell"), (teacher / "student.pt", "damaged"),
    ):  # fmt: skip
        assert [line for line in err.splitlines() if str(path) in line and words in line], (path, err)
    assert (teacher / "student.pt").read_bytes() == content and list(teacher.glob("student.pt.damaged-1"))
    assert "4 cells to run, 9 in the store" in err
    assert bench.files() == done[0].files()
    code, _, err = bench.run()
    assert code == 0 and "cells to run" not in err


def label(path: Path) -> str:
    return json.loads(path.read_text())["label"]
