"""Images from files, networks of timm and torchvision, and the arithmetic that protocols choose."""

from __future__ import annotations

import copy
import functools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import nn

import kd_methods
from benchmarks import networks
from benchmarks.common.weights import to_bytes
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import Protocol, load_protocol
from benchmarks.config.recipe import Crops, Optimizer
from benchmarks.config.table_spec import stem
from benchmarks.driver.executors import local
from benchmarks.driver.plan import Request, make
from benchmarks.networks import NetworkView, build_network
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.cells import make_cell
from benchmarks.store.runs import Store
from benchmarks.tasks import get_task, imagenet, images, streamed
from benchmarks.tasks.streamed import StreamedImages, _auto_augment, _posterize, drawing
from benchmarks.teachers import published_weights
from benchmarks.teachers.verification import _path
from benchmarks.teachers.zoo import Zoo
from benchmarks.training.teacher_pass import _identity
from kd_methods.contract import DataInfo
from kd_methods.contract.patches import as_map, as_tokens
from kd_methods.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WNIDS = ("n01440764", "n01443537", "n02085620")
FAMILIES = {
    "timm:test_resnet": 32,
    "timm:test_vit": 32,
    "timm:swin_tiny_patch4_window7_224": 64,
    "timm:mixer_s32_224": 64,
    "timm:test_convnext": 64,
    "timm:test_efficientnet": 32,
    "timm:regnetx_002": 64,
    "torchvision:resnet18": 64,
    "torchvision:mobilenet_v2": 32,
    "MobileNetV1": 64,
}


@functools.cache
def network(name: str) -> NetworkView:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        view = build_network(name, 7, (3, FAMILIES[name], FAMILIES[name]))
    return view.requires_grad_(False).eval()


def pixels(name: str, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, FAMILIES[name], FAMILIES[name], generator=torch.Generator().manual_seed(1))


# --- networks of the libraries


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pass_that_is_resumed_behind_any_unit_is_the_networks_own(name: str) -> None:
    view, x = network(name), pixels(name)
    kept = view(x, at=view.units)
    assert torch.equal(kept.logits, view.module(x))
    for unit in view.units:
        assert torch.equal(view.resume(unit, kept[unit]), kept.logits), unit
    assert len(view.layout.stages) == 4 and len(view.layout.blocks) == 4
    assert [unit for unit in view.layout.rectified if (kept[unit] < 0).any()] == []
    for before, stage in zip(view.layout.preacts, view.layout.stages, strict=True):
        assert before == stage or torch.equal(kept[before].relu(), kept[stage])
    torch.testing.assert_close(view.fold_batch_norms()(x).logits, kept.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_through_the_chain_is_the_librarys(name: str) -> None:
    """The same random numbers (dropout, stochastic depth) and the same running statistics."""
    view, x = build_network(name, 7, (3, FAMILIES[name], FAMILIES[name])), pixels(name, 4)
    plain = build_network(name, 7, (3, FAMILIES[name], FAMILIES[name]))
    plain.module.load_state_dict(view.module.state_dict())
    for part in (view, plain):
        part.train()
    torch.manual_seed(3)
    view(x).logits.square().mean().backward()
    torch.manual_seed(3)
    plain.module(x).square().mean().backward()
    for (key, ours), theirs in zip(view.module.named_parameters(), plain.module.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad) if ours.grad is not None else theirs.grad is None, key
    assert all(map(torch.equal, view.module.buffers(), plain.module.buffers()))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_part_can_be_inserted_behind_any_unit(name: str) -> None:
    view, x = network(name), pixels(name)
    logits = view(x).logits
    for unit in view.units[:-1]:
        shape = view.shape(unit)
        seen: list[tuple[int, ...]] = []
        part = nn.Identity()
        part.register_forward_hook(lambda module, given, out, seen=seen: seen.append(tuple(out.shape[1:])))
        assert torch.equal(view.insert(unit, "own", part)(x).logits, logits) and seen[-1] == shape, unit


def test_maps_are_channels_first_and_tokens_are_maps_of_their_patches() -> None:
    swin, vit = network("timm:swin_tiny_patch4_window7_224"), network("timm:test_vit")
    assert swin.shapes("stages") == ((96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2))
    assert swin(pixels("timm:swin_tiny_patch4_window7_224")).stages[0].is_contiguous(memory_format=torch.channels_last)
    assert vit.layout.prefix_tokens == 1 and vit.shape(vit.layout.stages[0]) == (5, 64)
    kept = vit(pixels("timm:test_vit"))
    assert vit.shapes("stages")[0] == tuple(kept.stages[0].shape[1:]) == (64, 2, 2)
    assert vit.shapes("blocks")[0] == tuple(kept.blocks[0].shape[1:]) == (5, 64)


def test_tokens_to_a_map_and_back() -> None:
    tokens = torch.randn(2, 10, 3)
    maps = as_map(tokens, 1)
    assert maps.shape == (2, 3, 3, 3) and torch.equal(maps[0, :, 1, 2], tokens[0, 1 + 5])
    back = as_tokens(maps, 1)
    assert torch.equal(back[:, 1:], tokens[:, 1:])
    torch.testing.assert_close(back[:, 0], tokens[:, 1:].mean(1))
    vit = network("timm:test_vit")
    unit = vit.layout.stages[-1]
    feature = torch.randn(2, 64, 2, 2)
    assert torch.equal(vit.resume(unit, feature), vit.resume(unit, as_tokens(feature, 1)))


def test_a_teacher_with_a_size_and_a_normalisation_of_its_own() -> None:
    """It sees the batch resized, and normalised by its own mean and deviation."""
    task, protocol = get_task("digits"), load_protocol("digits-demo")
    data = task.open(Path(), protocol, torch.device("cpu"))
    view = data.build("timm:test_vit@48").eval()
    assert view.units[0] == "resize" and view.shapes("stages")[0] == (64, 3, 3)
    batch = next(iter(data.batches(0, 1)))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    with torch.no_grad():
        found = view(batch.inputs((mean, std))).logits
        raw = batch.images.permute(0, 3, 1, 2).float() / 255
        raw = (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        resized = nn.functional.interpolate(raw, size=(48, 48), mode="bilinear", antialias=True)
        torch.testing.assert_close(found, view.module(resized), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(view.plain()(raw), found, rtol=1e-4, atol=1e-5)
    assert list(view.plain().state_dict()) == list(view.module.state_dict())


def test_table_3s_networks_have_the_known_sizes() -> None:
    """specs: parameters and connectors of Block-KD for the two pairs."""
    shape = (3, 224, 224)
    small = [build_network(name, 1000, shape) for name in ("torchvision:resnet18", "MobileNetV1")]
    assert networks.count(small[1].parameters()) == 4_231_976
    large = [build_network(f"torchvision:resnet{depth}", 1000, shape) for depth in (34, 50)]
    assert small[1].shapes("stages") == ((128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7))
    for student, teacher, count in zip(small, large, (350_080, 2_792_960), strict=True):
        method = kd_methods.build("block_kd", student, teacher.requires_grad_(False), DataInfo(10, 1000))
        assert networks.count(method.parameters()) == count


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:resnet81", "did you mean"),
        ("timm:resnet18@99999999", "sizes are 8 to 2048"),
        (f"torchvision:resnet18@{'9' * 9000}", "sizes are 8 to 2048"),
        ("timm:resnet18@7", "sizes are 8 to 2048"),
        ("timm:resnet18.a1_in1k", "the network is timm:resnet18"),
        ("torchvision:resnet81", "did you mean"),
        ("timm:deit_tiny_distilled_patch16_224", "no one vector"),
        ("torchvision:vit_b_16", "@SIZE resizes them"),
        ("timm:mobilevit_xxs", "cannot be cut"),
    ],
)
def test_a_network_that_cannot_be_had_is_one_line(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        build_network(name, 7, (3, 64, 64))
    assert "\n" not in str(caught.value)


def test_weights_of_the_libraries_become_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = Zoo(tmp_path)
    entry = zoo.wanted("torchvision:resnet50.IMAGENET1K_V2")
    assert (entry.network, entry.task, entry.sha256) == ("torchvision:resnet50", "imagenet", "11ad3fa6")
    assert zoo.wanted("torchvision:resnet34").expected == pytest.approx(73.314)
    with pytest.raises(UserError, match="did you mean"):
        zoo.wanted("timm:resnet18.a9_in1k")
    made: list[str] = []

    def create(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        made.append(name)
        return create_model("test_resnet", **arguments)

    create_model = timm.create_model
    monkeypatch.setattr(published_weights.timm, "create_model", create)
    entry = zoo.wanted("timm:test_resnet.r160_in1k")
    zoo.fetch([entry], lambda line: None)
    assert made[0] == "test_resnet.r160_in1k"
    installed = Zoo(tmp_path).installed("timm:test_resnet", "imagenet")
    assert installed and installed.mean == entry.mean == tuple(timm.get_pretrained_cfg("test_resnet.r160_in1k").mean)


# --- images from files


def write_images(folder: Path, per_class: int = 4) -> Path:
    """ImageNet's layout with three of its classes; one image is grey."""
    draws = np.random.default_rng(0)
    for split, count in (("train", per_class), ("val", 2)):
        for number, name in enumerate(WNIDS):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                picture = draws.integers(0, 255, (40 + 3 * i, 50), dtype=np.uint8)
                picture = picture if (number, i) == (0, 0) else np.stack([picture] * 3, -1) // (number + 1)
                Image.fromarray(picture).save(folder / split / name / f"{i}.JPEG")
    return folder


def recipe(**changes: Any) -> Protocol:
    values: dict[str, Any] = {
        "name": "files", "version": 1, "task": "imagenet", "epochs": 2, "batch_size": 4, "flip": True,
        "optimizer": Optimizer(lr=0.05, weight_decay=1e-4), "mean": MEAN, "std": STD,
        "crops": Crops(size=32, test_resize=36, workers=2),
    }  # fmt: skip
    return Protocol(**{**values, **changes})


def opened(root: Path, **changes: Any) -> StreamedImages:
    data = imagenet.TASKS[0].open(root, recipe(**changes), torch.device("cpu"))
    assert isinstance(data, StreamedImages)
    return data


def test_classes_have_their_official_numbers_and_a_part_is_named(tmp_path: Path) -> None:
    root = write_images(tmp_path)
    train, test = imagenet.find(root)
    assert (Counter(train.labels.tolist()), len(test.labels)) == (Counter({0: 4, 1: 4, 151: 4}), 6)
    task = get_task("imagenet")
    assert "12 training and 6 test images, officially 1281167 and 50000" in task.deviations(root)[0]
    before = task.fingerprint(root, recipe())
    task._cache.clear()
    Image.new("RGB", (9, 9)).save(root / "train" / WNIDS[0] / "0.JPEG")
    assert task.fingerprint(root, recipe()) != before
    task._cache.clear()


@pytest.mark.parametrize(
    "augmented", [{}, {"auto_augment": "rand-m9-mstd0.5-inc1", "erase": 0.5}, {"color_jitter": 0.4}]
)
def test_what_an_image_becomes_depends_on_its_place_alone(tmp_path: Path, augmented: dict[str, Any]) -> None:
    """Not on the number of workers, nor on where in the epoch training goes on, nor on random numbers drawn outside."""
    root = write_images(tmp_path)
    crops = {"size": 32, "test_resize": 36, **augmented}
    with_workers = opened(root, crops=Crops(workers=2, **crops))
    whole = [(b.images, b.labels, b.indices) for b in with_workers.batches(0, 1)]
    state = random.getstate()
    torch.rand(3)
    alone = opened(root, crops=Crops(workers=0, **crops))
    rest = [(b.images, b.labels, b.indices) for b in alone.batches(0, 1, start=1)]
    assert random.getstate() == state
    assert len(whole) == 3 and len(rest) == 2
    for one, other in zip(whole[1:], rest, strict=True):
        assert all(map(torch.equal, one, other))
    again = next(iter(alone.batches(0, 2)))
    assert not torch.equal(again.images, whole[0][0])
    assert whole[0][0].dtype == torch.uint8 and whole[0][0].shape == (4, 32, 32, 3)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original"])
def test_timms_augmentations_run_at_any_strength(tmp_path: Path, policy: str) -> None:
    """Posterising to no bits at all, too, which recent versions of Pillow refuse."""
    transform = _auto_augment(Crops(auto_augment=policy), MEAN)
    picture = Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8))
    with drawing(0):
        for _ in range(1000):
            transform(picture)
    assert np.asarray(_posterize(picture, 0)).max() == 0 and np.asarray(_posterize(picture, 1)).max() == 128


def test_evaluation_sees_the_middle_of_each_image(tmp_path: Path) -> None:
    data = opened(write_images(tmp_path))
    (found, labels), *more = list(data.tested())
    assert sum(len(part) for _, part in more) + len(labels) == data.test_samples == 6
    with Image.open(data.images.splits[1].root / data.images.splits[1].paths[3]) as file:
        wanted = TF.center_crop(TF.resize(file.convert("RGB"), 36), 32)
    assert torch.equal(found[3], torch.from_numpy(np.array(wanted)))
    assert torch.equal(data.clean(torch.tensor([3]), test=True).images[0], found[3])
    assert [len(batch) for batch in data.cleaned(torch.arange(10), 4)] == [4, 4, 2]


def test_what_is_known_of_a_teacher_belongs_to_the_size_of_the_images(tmp_path: Path) -> None:
    """Its accuracy, and what methods prepare from it."""
    ref = TeacherRef("timm:test_resnet", MEAN, STD, weights="of this test")
    workspace = Workspace(torch.device("cpu"), output=tmp_path)
    paths, identities = set(), []
    for size, workers in ((32, 0), (32, 2), (48, 0)):
        protocol = recipe(crops=Crops(size=size, test_resize=64, workers=workers))
        paths.add(_path(ref, "files", protocol, workspace))
        identities.append(_identity(make_cell(protocol, "files", "kd", "timm:test_vit", 0, ref, {}, {}), ref))
    assert len(paths) == 2 and identities[0] == identities[1] != identities[2]


def test_bad_images_and_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="put folders train and val"):
        imagenet.find(tmp_path)
    root = write_images(tmp_path / "a")
    (root / "train" / WNIDS[1] / "2.JPEG").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^/\S*2.JPEG is no readable image \(\w*\); replace it$"):
        list(opened(root, crops=Crops(workers=2)).batches(0, 1))
    assert not multiprocessing.active_children()  # at once, not when the error is collected
    (root / "train" / "cats").mkdir()
    with pytest.raises(UserError, match="none of ImageNet's 1,000 classes"):
        imagenet.find(root)
    with pytest.raises(UserError, match="has no crops"):
        imagenet.TASKS[0].open(root, load_protocol("cifar100-crd240"), torch.device("cpu"))
    with pytest.raises(UserError, match="have one"):
        get_task("digits").open(root, recipe(), torch.device("cpu"))
    archives = tmp_path / "b"
    archives.mkdir()
    for name in imagenet.ARCHIVES:
        (archives / name).write_bytes(b"no archive")
    with pytest.raises(UserError, match="the first run checks and unpacks"):
        get_task("imagenet").samples(archives, download=False)
    with pytest.raises(UserError, match="damaged"):
        imagenet.find(archives)


def test_loader_processes_outlive_a_signal_to_all_but_not_for_ever(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(streamed, "PATIENCE", 1)
    data = opened(write_images(tmp_path), crops=Crops(workers=2))
    whole = [batch.indices for batch in data.batches(0, 1)]
    batches = data.batches(0, 1)
    got = [next(batches).indices]
    children = multiprocessing.active_children()
    assert children
    for child in children:
        child.terminate()
    assert torch.equal(torch.cat([*got, *(batch.indices for batch in batches)]), torch.cat(whole))
    assert not multiprocessing.active_children()

    def left_behind() -> None:
        held.append(data.batches(0, 1))
        next(held[0])

    held: list[Any] = []
    process = multiprocessing.get_context("fork").Process(target=left_behind)
    process.start()
    process.join(timeout=60)
    assert process.exitcode is not None, "a process waits at its end for workers that never end"


def test_tiny_imagenet_in_its_official_layout(tmp_path: Path) -> None:
    task, folder = get_task("tiny-imagenet"), tmp_path / "tiny-imagenet-200"
    with pytest.raises(UserError, match=r"unpack tiny-imagenet-200.zip"):
        task.samples(tmp_path)
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("n02\nn01\n")
    for name in ("n01", "n02"):
        (folder / "train" / name / "images").mkdir(parents=True)
        Image.new("L" if name == "n01" else "RGB", (64, 64), 100).save(folder / "train" / name / "images" / "0.JPEG")
    Image.new("RGB", (64, 64)).save(folder / "val" / "images" / "val_0.JPEG")
    with pytest.raises(UserError, match=r"val_annotations.txt is missing"):
        task.samples(tmp_path)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\n")
    train, test, _ = task.read(tmp_path)  # type: ignore[attr-defined]
    assert train.images.shape == (2, 64, 64, 3) and train.labels.tolist() == [0, 1] and test.labels.tolist() == [1]
    assert "2 training and 1 test images, officially 100000 and 10000" in task.deviations(tmp_path)[0]


@pytest.mark.parametrize("size", [(9, 9), (8, 12)])
def test_rotation_is_torchvisions(size: tuple[int, int]) -> None:
    height, width = size
    picture = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for angle in (-20.0, 13.0, 90.0):
        y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
        y, x = images._turned(y, x, size, torch.tensor([angle]))
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        found = picture[y.clamp(0, height - 1), x.clamp(0, width - 1)][0] * inside[0, ..., None]
        assert torch.equal(found, TF.rotate(picture.permute(2, 0, 1), angle).permute(1, 2, 0)), angle


# --- training: exact resume, parts of a batch, precision


class Bench:
    """A pair with a transformer on images from files: a folder, a teacher file, and cells."""

    def __init__(self, folder: Path, workers: int = 0, **changes: Any) -> None:
        self.folder = folder
        self.protocol = recipe(crops=Crops(size=32, test_resize=36, workers=workers), **changes)
        root = folder / "images"
        if not root.is_dir():
            write_images(root)
        self.data = imagenet.TASKS[0].open(root, self.protocol, torch.device("cpu"))
        self.file = folder / "teacher.pt"
        if not self.file.is_file():
            torch.manual_seed(7)
            self.file.write_bytes(to_bytes(self.data.build("timm:test_resnet").module.state_dict()))
        self.store = Store(folder / "out")
        self.events: list[str] = []

    def cells(self, *methods: str) -> list[Cell]:
        teacher = TeacherRef("timm:test_resnet", (0.5,) * 3, (0.25,) * 3, weights="of this test")
        taught = {name: kd_methods.registry.get(name).needs_teacher for name in methods}
        return [
            make_cell(self.protocol, "files", name, "timm:test_vit", 0, teacher if taught[name] else None, {}, {})
            for name in methods
        ]

    def run(self, cells: list[Cell], kill_after: int = 0) -> None:
        def report(student_run: Any, event: str) -> None:
            self.events.append(event)
            if event == "step" and self.events.count("step") == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        local.run(
            cells,
            local.Context(
                self.store,
                self.protocol,
                self.data,
                torch.device("cpu"),
                lambda ref: self.file,
                report,
                print,
                save_seconds=0.0,
            ),
        )

    def weights(self, cell: Cell) -> dict[str, torch.Tensor]:
        assert self.store.run(cell).state == "done", self.store.run(cell).status
        return torch.load(self.store.run(cell) / "student.pt", weights_only=True)


METHODS = ("student", "kd", "block_kd")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(map(torch.equal, one.values(), other.values()))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp16", "accumulate": 2},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"precision": "bf16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_killed_in_the_middle_of_an_epoch_and_resumed_to_the_same_bits(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Whatever the arithmetic and the number of worker processes."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    for kill_after in (11, 0):
        killed.mkdir(exist_ok=True)
        arguments = [str(killed), str(kill_after), json.dumps(changes)]
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == (-signal.SIGKILL if kill_after else 0), done.stderr
        if not kill_after:
            # Of 3 methods, 2 epochs and 3 steps it made 11 steps before the kill; at most a step of each is lost.
            assert int(done.stdout.split()[-1]) <= 18 - 11 + 3, "it began anew"
    whole.mkdir()
    benches = [Bench(folder, **changes) for folder in (killed, whole)]
    benches[1].run(benches[1].cells(*METHODS))
    for cell in benches[0].cells(*METHODS):
        assert same(*(bench.weights(cell) for bench in benches)), cell.label


def test_parts_of_a_batch_have_the_gradients_of_the_whole(tmp_path: Path) -> None:
    """Without batch statistics (a transformer), up to rounding; a last batch of fewer images as well."""
    found = []
    for accumulate in (1, 4):
        bench = Bench(tmp_path, accumulate=accumulate, epochs=1)
        (cell,) = bench.cells("kd")
        bench.run([cell])
        found.append(bench.weights(cell))
    start = bench.data.build("timm:test_vit").module.state_dict()
    for key, value in found[0].items():
        moved = float((value - start[key]).abs().max())
        torch.testing.assert_close(found[1][key], value, rtol=0, atol=1e-4 * moved + 1e-7, msg=key)


def test_each_precision_trains_nearly_the_same(tmp_path: Path) -> None:
    runs = {}
    for precision in ("fp32", "bf16", "fp16"):
        bench = Bench(tmp_path, precision=precision, epochs=1)
        cells = bench.cells("kd", "block_kd")
        bench.run(cells)
        runs[precision] = [bench.store.run(cell).metrics[-1]["losses"] for cell in cells]
    for precision in ("bf16", "fp16"):
        for ours, theirs in zip(runs["fp32"], runs[precision], strict=True):
            assert ours != theirs and all(theirs[name] == pytest.approx(ours[name], rel=0.2) for name in ours), theirs


@pytest.mark.slow
def test_a_compiled_network_computes_the_same() -> None:
    """Also a copy of it, which has a pass of its own. (Needs a C++ compiler, and takes it a while.)"""
    view, x = build_network("timm:test_vit", 7, (3, 32, 32)), pixels("timm:test_vit")
    wanted = view.eval()(x, at=view.units)
    view.compiles = True
    for one in (view, copy.deepcopy(view)):
        found = one(x, at=view.units)
        for unit in view.units:
            torch.testing.assert_close(found[unit], wanted[unit], rtol=1e-4, atol=1e-5)
        one.train()(x).logits.sum().backward()
        assert all(parameter.grad is not None for parameter in one.parameters())
        one.eval()


def test_fewer_images_than_a_batch_are_refused_where_incomplete_batches_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path)
    with pytest.raises(UserError, match="12 training samples here, fewer than a batch of 1024"):
        make(Request("table3-timm"), Workspace(torch.device("cpu"), tmp_path, tmp_path))


def test_what_does_not_fit_together_is_said() -> None:
    with pytest.raises(UserError, match="no 3 parts"):
        load_protocol("imagenet-100").changed(accumulate=3)
    with pytest.raises(UserError, match="not for detection"):
        load_protocol("coco-1x").changed(accumulate=2)
    with pytest.raises(UserError, match="8 is not shared evenly by 3 processes"):
        load_protocol("coco-1x").changed(processes=3)
    with pytest.raises(UserError, match="--processes is for detection"):
        load_protocol("imagenet-100").changed(processes=2)
    shared = load_protocol("coco-1x").changed(precision="bf16", processes=4)
    assert (
        "bf16, each batch on 4 processes (batch statistics and relations are those of 2 samples)" in shared.lines()[2]
    )
    assert stem("t", "paper", load_protocol("coco-1x"), shared) == "t-paper-bf16-processes4"
    changed = load_protocol("imagenet-100").changed(precision="bf16", accumulate=4)
    assert "bf16, each batch in 4 parts" in changed.lines()[-1]
    assert changed.identity() != load_protocol("imagenet-100").identity()
    assert changed.recipe == "imagenet-100" and "bf16 instead of fp32" in changed.deviations
    two_rates = load_protocol("imagenet-100").with_optimizer({"name": "dot", "delta": 0.09})
    with pytest.raises(UserError, match="dot"):
        two_rates.changed(accumulate=4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    own = Bench(Path(sys.argv[1]), workers=2, **json.loads(sys.argv[3]))
    own.run(own.cells(*METHODS), kill_after=int(sys.argv[2]))
    print(own.events.count("step"))
