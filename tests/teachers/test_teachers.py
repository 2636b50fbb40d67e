"""Teacher files: what is read, what is refused, how they are added, fetched and verified."""

from __future__ import annotations

import functools
import http.server
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from helpers.real_data import CIFAR100, RealData
from torch import Tensor

from benchmarks.cli.main import cli
from benchmarks.common.console import Outcome
from benchmarks.common.files import read_json, sha256_file
from benchmarks.common.seeding import derive
from benchmarks.common.weights import load_weights, weights_digest
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.driver.engines import measured_by
from benchmarks.driver.planning.estimate import Estimate
from benchmarks.driver.planning.plan import Request, make
from benchmarks.driver.reproduce import Options, reproduce
from benchmarks.networks import build_network
from benchmarks.report.collect import render
from benchmarks.store.runs import Store
from benchmarks.tasks import get_task
from benchmarks.teachers.verification import verify_teachers
from benchmarks.teachers.zoo import Teacher, Zoo, make_entry
from kd_methods.errors import UserError

CPU = torch.device("cpu")
DIGITS = {"task": "digits", "mean": (0.3, 0.3, 0.3), "std": (0.35, 0.35, 0.35)}
CHENYAOFO = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path / "checkpoints")


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return network_weights()


def network_weights(name: str = "resnet8", num_classes: int = 10) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_network(name, num_classes).module.state_dict()


def saved(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def tree(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_add_installs_a_plain_file_and_an_entry(zoo: Zoo, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    file = saved(tmp_path / "mine.pth", {"net": {f"module.{k}": v for k, v in weights.items()}})
    added = zoo.add(Teacher(name="mine", network="resnet8", **DIGITS, expected=12.0), file)
    assert added.weights == weights_digest(weights)
    again = Zoo(zoo.folder)
    assert again.get("mine") == added and again.installed("resnet8", "digits") == added
    assert list(torch.load(zoo.path(added), weights_only=True)) == list(weights)
    assert "did you mean mine" in refusal(lambda: again.get("mien"))


def test_a_file_that_another_replaces_is_kept_beside_it(zoo: Zoo, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """It may be the only copy. A name is not given to a teacher of another task."""
    one = saved(tmp_path / "one.pth", weights)
    two = saved(tmp_path / "two.pth", {key: value + 1 for key, value in weights.items()})
    words = ["--network", "resnet8", "--checkpoints", str(zoo.folder)]

    def add(file: Path, task: str) -> Any:
        return CliRunner().invoke(cli, ["teachers", "add", "mine", str(file), "--task", task, *words])

    assert "replaces" not in add(one, "digits").output
    assert "replaces" not in add(one, "digits").output, "the same file again"
    path = zoo.folder / "digits" / "mine.pt"
    content = path.read_bytes()
    failed = add(two, "digits32").exception
    assert isinstance(failed, UserError) and "'mine' is one of task digits" in str(failed), failed
    assert path.read_bytes() == content and not (zoo.folder / "digits32").exists()
    assert f"it replaces the file that was there, which is kept as {path}.replaced-1" in add(two, "digits").output
    assert path.with_name("mine.pt.replaced-1").read_bytes() == content != path.read_bytes()


def test_which_of_several_weights_were_taken_is_said(zoo: Zoo, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    average = {key: value + 1 for key, value in weights.items()}
    file = saved(tmp_path / "mine.pth", {"state_dict": weights, "state_dict_ema": average})
    entry, said = Teacher(name="mine", network="resnet8", **DIGITS), []  # type: ignore[var-annotated]
    assert zoo.add(entry, file, report=said.append).weights == weights_digest(weights)
    assert zoo.add(entry, file, which="state_dict_ema", report=said.append).weights == weights_digest(average)
    assert "took the weights under 'state_dict'; others that fit are under state_dict_ema" in said[0]
    assert "took the weights under 'state_dict_ema'" in said[1] and len(said) == 2
    assert "leave out --weights" in refusal(lambda: zoo.add(entry, tmp_path, which="model"))


@pytest.mark.parametrize(
    "values",
    [
        {"std": (0.0, 0.2, 0.2)},
        {"std": (-0.2,) * 3},
        {"std": (68.2,) * 3},
        {"mean": (129.3,) * 3},
        {"mean": (float("nan"),) * 3},
        {"mean": (0.5, 0.5)},
    ],
)
def test_a_normalisation_that_is_none_is_refused(values: dict[str, Any]) -> None:
    line = refusal(lambda: make_entry(**{"name": "mine", "network": "resnet8", **DIGITS, **values}))
    assert f"teacher {next(iter(values))}" in line


def test_what_does_not_fit_is_not_added(zoo: Zoo, tmp_path: Path) -> None:
    file = saved(tmp_path / "mine.pth", network_weights("resnet14"))
    entry = Teacher(name="mine", network="resnet8", **DIGITS)
    assert str(file) in refusal(lambda: zoo.add(entry, file))
    assert "unknown network 'resnet9'" in refusal(
        lambda: zoo.add(entry.model_copy(update={"network": "resnet9"}), file)
    )
    assert "unknown task 'digit'" in refusal(lambda: zoo.add(entry.model_copy(update={"task": "digit"}), file))
    assert not zoo.folder.exists() and not zoo.added


def test_a_teacher_is_not_written_outside_its_folder(zoo: Zoo, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    file = saved(tmp_path / "mine.pth", weights)
    before = {path for path in tree(tmp_path) if path.parts[0] != "checkpoints"}
    with pytest.raises(UserError):
        zoo.add(make_entry(name="../../escaped", network="resnet8", **DIGITS), file)
    assert {path for path in tree(tmp_path) if path.parts[0] != "checkpoints"} == before


def verified(zoo: Zoo, names: list[str], root: Path, say: Callable[[str], None]) -> Outcome:
    workspace = Workspace(CPU, root, zoo.folder, root, say=say)
    return verify_teachers(names, workspace, measured_by(workspace))


def test_verify_measures_on_the_test_set(zoo: Zoo, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    file = saved(tmp_path / "mine.pth", weights)
    assert "no teacher is installed" in refusal(lambda: verified(zoo, [], tmp_path, print))
    entry = zoo.add(Teacher(name="mine", network="resnet8", **DIGITS), file)
    top1 = zoo.measure(entry, load_protocol("digits-demo"), tmp_path, CPU)["top1"]

    network = build_network("resnet8", 10, (3, 16, 16)).eval()
    network.module.load_state_dict(weights)
    data = get_task("digits").open(tmp_path, load_protocol("digits-demo"), CPU)
    by_hand = data.evaluate(lambda x: {"": network.module(x)}, (entry.mean, entry.std))[""]["top1"]
    assert top1 == pytest.approx(by_hand, abs=0.3), "folding the batch-norms changes nothing but rounding"

    said: list[str] = []
    verified(zoo, [], tmp_path, said.append)
    assert len(said) == 1 and f"top1 {top1:.2f}" in said[0] and "no expected accuracy" in said[0]
    zoo.add(entry.model_copy(update={"expected": round(top1, 2)}), file)
    verified(zoo, ["mine"], tmp_path, said.append)
    assert "gap +0.00" in said[1] or "gap -0.00" in said[1]
    zoo.add(entry.model_copy(update={"expected": top1 + 0.2}), file)
    outcome = verified(zoo, ["mine"], tmp_path, said.append)
    assert "1 of 1 teacher outside +-0.1 of what is expected: mine" in outcome.missing
    assert "gap -0.20" in said[2]
    assert "unknown teacher 'min'" in refusal(lambda: verified(zoo, ["min"], tmp_path, said.append))


def small_table(tmp_path: Path) -> str:
    (tmp_path / "p.yaml").write_text("extends: digits-demo\nname: p\nversion: 1\nepochs: 1\nbatch_size: 256\n")
    (tmp_path / "t.yaml").write_text(
        f"name: t\ntitle: T\npairs: [resnet14-resnet8]\nmethods: [kd]\n"
        f"presets: {{demo: {{protocol: '{tmp_path}/p.yaml', seeds: [0]}}}}\n"
    )
    return str(tmp_path / "t.yaml")


def test_a_teacher_that_is_not_what_its_entry_says_stops_the_run(zoo: Zoo, tmp_path: Path) -> None:
    file = saved(tmp_path / "mine.pth", network_weights("resnet14"))
    entry = Teacher(name="resnet14", network="resnet14", **DIGITS, expected=95.0, expected_source="given")
    zoo.add(entry, file)
    output = tmp_path / "results"
    said: list[str] = []
    request, options = Request(small_table(tmp_path), "demo"), Options(costs=False)
    workspace = Workspace(CPU, tmp_path, zoo.folder, output, say=said.append)
    line = refusal(lambda: reproduce(request, workspace, options))
    assert "teacher 'resnet14' measures" in line and "expects 95.00 (given)" in line and "--any-teacher" in line
    assert not (output / "runs").exists()

    text = reproduce(request, workspace, replace(options, any_teacher=True)).text
    (known,) = (output / "teachers").glob("*.json")
    top1 = read_json(known)["value"]
    assert f"| Teacher | {top1:.2f} |" in text and "KD" in text and "off its expected accuracy" in text
    # Held-out images were among those that the teacher learnt from: there its entry expects nothing.
    held = reproduce(replace(request, changes={"holdout": 200, "epochs": 1}), workspace, options).text
    assert "trained on the held-out images too" in held and "off its expected accuracy" not in held
    assert sum("evaluating teacher" in line for line in said) == 2, "measured once for these weights and data"

    zoo.add(entry.model_copy(update={"expected": top1 + 0.05}), file)
    reproduce(replace(request, seeds=(1,)), workspace, options)

    known.write_text(known.read_text().replace('"value": ', '"value": 1'))
    assert reproduce(replace(request, seeds=(1,)), workspace, options).text.startswith(text[:20])
    assert any(str(known) in line and "damaged" in line for line in said) and read_json(known)["value"] == top1
    assert known.with_name(f"{known.name}.damaged-1").is_file()


def test_a_refused_teacher_loses_nothing_of_the_table(zoo: Zoo, tmp_path: Path) -> None:
    entry = Teacher(name="resnet14", network="resnet14", **DIGITS)
    zoo.add(entry, saved(tmp_path / "good.pth", network_weights("resnet14")))
    options, request = Options(costs=False), Request(small_table(tmp_path), "demo")
    workspace = Workspace(CPU, tmp_path, zoo.folder, tmp_path / "results", say=lambda line: None)
    text = reproduce(request, workspace, options).text
    other = {key: value + 1 for key, value in network_weights("resnet14").items()}
    zoo.add(entry.model_copy(update={"expected": 95.0}), saved(tmp_path / "bad.pth", other))
    refusal(lambda: reproduce(request, workspace, options))
    assert render(workspace.output, "t-demo")[1] == text


class Server:
    """Files on 127.0.0.1; counts what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []  # type: ignore[var-annotated]
        folder.mkdir()
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                asked.append(self.path)

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/{name}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server(tmp_path / "served")
    yield served
    served.server.shutdown()
    served.server.server_close()


def remote(zoo: Zoo, *sources: str, **fields: Any) -> Teacher:
    entry = Teacher(name="far-resnet8", network="resnet8", **DIGITS, sources=sources, **fields)
    zoo.shipped[entry.name] = entry
    return entry


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("digits", [64, 8])
def test_fetch_checks_the_digest_and_installs(
    zoo: Zoo, server: Server, weights: dict[str, Tensor], digits: int
) -> None:
    file = saved(server.folder / "a.pth", {"model": weights})
    entry = remote(zoo, server.url("absent.pth"), server.url("a.pth"), sha256=sha256_file(file)[:digits])
    said: list[str] = []
    zoo.fetch([entry], said.append)
    assert weights_digest(load_weights(zoo.path(entry))) == weights_digest(weights)
    assert zoo.installed("resnet8", "digits") == entry and len(server.asked) == 3, (
        "the next source after one that fails"
    )


def test_fetch_installs_nothing_with_another_digest(zoo: Zoo, server: Server, weights: dict[str, Tensor]) -> None:
    file = saved(server.folder / "a.pth", weights)
    entry = remote(zoo, server.url("a.pth"), sha256="0" * 64)
    line = refusal(lambda: zoo.fetch([entry], print))
    assert sha256_file(file) in line and "0" * 64 in line
    assert not zoo.path(entry).exists() and zoo.installed("resnet8", "digits") is None


def test_fetch_says_when_no_digest_is_published(zoo: Zoo, server: Server, weights: dict[str, Tensor]) -> None:
    file = saved(server.folder / "a.pth", weights)
    said: list[str] = []
    zoo.fetch([remote(zoo, server.url("a.pth"))], said.append)
    assert any("no digest is published" in line and sha256_file(file) in line for line in said)


def test_fetch_takes_a_member_of_an_archive(zoo: Zoo, server: Server, weights: dict[str, Tensor]) -> None:
    file = saved(server.folder / "a.pth", {"model": weights})
    members = {"../../evil.txt": b"evil", "/tmp-evil.txt": b"evil", "teachers/a/ckpt.pth": file.read_bytes()}
    tar(server.folder / "teachers.tar", members)
    entry = remote(zoo, server.url("teachers.tar"), member="teachers/a/ckpt.pth", sha256=sha256_file(file))
    zoo.fetch([entry], print)
    assert weights_digest(load_weights(zoo.path(entry))) == weights_digest(weights)


def test_an_archive_writes_nothing_outside(
    zoo: Zoo, server: Server, tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "deep" / "er"))
    file = saved(server.folder / "a.pth", weights)
    tar(server.folder / "evil.tar", {"../../evil.pth": file.read_bytes()})
    before = tree(tmp_path)
    zoo.fetch([remote(zoo, server.url("evil.tar"), member="../../evil.pth")], print)
    assert {path for path in tree(tmp_path) - before if path.parts[0] != "checkpoints"} == set()


def test_an_archive_without_the_member_is_refused(zoo: Zoo, server: Server) -> None:
    tar(server.folder / "a.tar", {"other.pth": b"x"})
    assert "holds no file mine.pth" in refusal(
        lambda: zoo.fetch([remote(zoo, server.url("a.tar"), member="mine.pth")], print)
    )


def test_a_truncated_archive_is_refused(zoo: Zoo, server: Server, weights: dict[str, Tensor]) -> None:
    file = saved(server.folder / "a.pth", weights)
    archive = tar(server.folder / "a.tar", {"first.pth": file.read_bytes(), "mine.pth": file.read_bytes()})
    archive.write_bytes(archive.read_bytes()[:20_000])
    refusal(lambda: zoo.fetch([remote(zoo, server.url("a.tar"), member="mine.pth")], print))


def test_no_server_is_one_line_with_the_way_out(zoo: Zoo, server: Server) -> None:
    url = server.url("a.pth")
    server.server.shutdown()
    server.server.server_close()
    line = refusal(lambda: zoo.fetch([remote(zoo, url)], print))
    assert url in line and "teachers add far-resnet8 FILE" in line and not zoo.folder.exists()


def test_an_entry_without_a_source_says_what_to_do(zoo: Zoo) -> None:
    assert "it has no source" in refusal(lambda: zoo.fetch([remote(zoo)], print))


def test_shipped_entries_are_complete(zoo: Zoo) -> None:
    from benchmarks import networks

    expected = {
        "resnet56": 72.34, "resnet110": 74.31, "resnet32x4": 79.42,
        "wrn_40_2": 75.61, "vgg13": 74.64, "ResNet50": 79.34,
    }  # fmt: skip
    assert {e.network: e.expected for e in zoo.shipped.values() if e.origin == "crd"} == expected
    for entry in zoo.shipped.values():
        networks.check(entry.network)
        assert entry.sources and entry.expected_source
        assert all(source.startswith("https://") for source in entry.sources)
        assert entry.member or entry.sha256, f"{entry.name}: neither an archive nor a digest"


@pytest.mark.real_data
@pytest.mark.parametrize(("network", "top1"), [("resnet20", 68.83), ("resnet56", 72.63)])
def test_known_weights_bring_their_entry(zoo: Zoo, real_data: RealData, network: str, top1: float) -> None:
    """A file under any name is recognised by its tensors: expected accuracy, normalisation and origin come along."""
    usual = load_protocol("cifar100-crd240")
    entry = Teacher(name="mine", network=network, task="cifar100", mean=usual.mean, std=usual.std)
    checkpoint = f"checkpoints/cifar100_{network}.pth"
    file = real_data(checkpoint) / checkpoint
    added = zoo.add(entry, file)
    assert (added.expected, added.origin, (added.mean, added.std)) == (top1, "chenyaofo", CHENYAOFO)
    as_given = zoo.add(entry.model_copy(update={"expected": 50.0}), file, keep_normalisation=True)
    assert (as_given.expected, as_given.mean, as_given.origin) == (50.0, usual.mean, "chenyaofo")


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize(("network", "top1"), [("resnet20", 68.83), ("resnet56", 72.63)])
def test_real_teachers_measure_what_is_published(zoo: Zoo, real_data: RealData, network: str, top1: float) -> None:
    checkpoint = f"checkpoints/cifar100_{network}.pth"
    root = real_data(CIFAR100, checkpoint)
    usual = load_protocol("cifar100-crd240")
    entry = Teacher(name="mine", network=network, task="cifar100", mean=usual.mean, std=usual.std)
    added = zoo.add(entry, root / checkpoint)
    assert zoo.measure(added, usual, root, CPU)["top1"] == pytest.approx(top1, abs=0.05)


# --- teachers that are fine-tuned from ImageNet weights


def test_a_teacher_is_fine_tuned_from_installed_imagenet_weights(tmp_path: Path):
    """Its classifier is new and learns at the full rate, the rest at the backbone's; students learn from it."""
    (tmp_path / "tuned.yaml").write_text(
        "extends: digits-demo\nname: tuned\nversion: 1\nepochs: 1\nbatch_size: 256\nmilestones: []\n"
        "start: imagenet\noptimizer: {backbone: 1.0e-6, weight_decay: 0.0}\n"
    )
    (tmp_path / "plain.yaml").write_text(
        "extends: digits-demo\nname: plain\nversion: 1\nepochs: 1\nbatch_size: 256\nmilestones: []\n"
        "teachers_from: tuned.yaml\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntitle: Mine\nmethods: [student, kd]\n"
        "pairs: [{id: test_resnet-resnet8, teacher: 'timm:test_resnet', student: resnet8}]\n"
        "presets:\n  demo: {protocol: plain.yaml, seeds: [0]}\n"
    )
    zoo = Zoo(tmp_path / "checkpoints")
    request = Request(table=str(tmp_path / "mine.yaml"), preset="demo")
    workspace = Workspace(CPU, tmp_path, zoo.folder, tmp_path, say=lambda _: None)
    options = Options(costs=False, similarity=True)
    assert make(replace(request, methods=("student",)), workspace).training == (), "nothing needs the weights"
    with pytest.raises(UserError, match=r"none are installed; see: \./reproduce\.sh teachers fetch timm:test_resnet"):
        reproduce(request, workspace, options)

    torch.manual_seed(5)
    start = build_network("timm:test_resnet", 1000, (3, 224, 224)).module.state_dict()
    torch.save(start, tmp_path / "start.pth")
    zoo.add(make_entry(name="start", network="timm:test_resnet", task="imagenet"), tmp_path / "start.pth")
    text = reproduce(request, workspace, options).text
    trained_under = "trained here under tuned v1 from the ImageNet weights start, seed 0"
    assert f"{trained_under}; not of the ImageNet weights, but drawn: 2 tensors (fc.bias, fc.weight)" in text
    plan = make(request, workspace)
    cell = plan.training[0]
    assert Estimate(plan, {cell.key: 1.0}, workspace).operations(cell)
    assert not any("similarity" in record for record in Store(tmp_path).run(cell).metrics), "it has no teacher"
    assert cell.start and (cell.start.network, cell.start.entry) == ("timm:test_resnet", "start")
    assert cell.protocol["optimizer"]["backbone"] == 1e-6 and cell.key != replace(cell, start=None).key
    trained = load_weights(Store(tmp_path).run(cell) / "student.pt")
    moved = {
        key
        for key, value in trained.items()
        if "running" not in key
        and "tracked" not in key
        and (value.shape != start[key].shape or not torch.allclose(value, start[key], atol=1e-4))
    }
    assert moved == {"fc.weight", "fc.bias"}
    torch.manual_seed(derive(0, "student"))
    head = build_network("timm:test_resnet", 10, (3, 8, 8)).module.state_dict()["fc.weight"]
    assert 1e-3 < (trained["fc.weight"] - head).abs().max() < 0.5, "the classifier has learnt"
