"""Tasks: what a batch is, what it depends on, what is measured; the registry, digits and CIFAR."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.errors import one_line
from helpers.images import CLASSES, CPU, data_of, images_of, protocol
from helpers.real_data import CIFAR100, RealData
from torch import Tensor

from benchmarks import tasks
from benchmarks.common.seeding import generator
from benchmarks.config.protocol import load_protocol, protocol_names, steps_per_epoch
from benchmarks.tasks import get_task, register_task, task_names
from benchmarks.tasks.data_sets import cifar
from benchmarks.tasks.images import ImageData, ImageTask, Split, normalise
from benchmarks.tasks.streamed import StreamTask
from kd_methods.errors import UserError


def epoch_of(data: ImageData, seed: int = 0, epoch: int = 1, start: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    batches = [batch.student() for batch in data.batches(seed, epoch, start)]
    return [(batch.inputs, batch.labels, batch.indices) for batch in batches]


def same(left: list[tuple[Tensor, ...]], right: list[tuple[Tensor, ...]]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_batches_depend_on_seed_epoch_and_step_alone():
    data = data_of(crop_padding=2, flip=True)
    first = epoch_of(data)
    torch.manual_seed(99)
    list(data.batches(5, 7))
    assert same(first, epoch_of(data))
    assert same(first, epoch_of(data_of(crop_padding=2, flip=True)))
    for start in range(len(first) + 1):
        assert same(first[start:], epoch_of(data, start=start))
    for other in (epoch_of(data, seed=1), epoch_of(data, epoch=2)):
        assert not torch.equal(other[0][2], first[0][2])


def test_batches_leave_the_global_generator_alone():
    data = data_of(crop_padding=2, flip=True)
    before = torch.get_rng_state()
    epoch_of(data)
    assert torch.equal(before, torch.get_rng_state())


def test_augmentation_is_drawn_anew_in_every_epoch_and_step():
    data = ImageData(Split(images_of(1).images.expand(64, -1, -1, -1), torch.zeros(64).long()), images_of(4), CLASSES,
                     protocol(batch_size=32, crop_padding=4, flip=True), CPU)  # fmt: skip
    inputs = [batch[0] for epoch in (1, 2) for batch in epoch_of(data, epoch=epoch)]
    assert len(inputs) == 4
    assert all(not torch.equal(a, b) for i, a in enumerate(inputs) for b in inputs[:i])


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [16, 16, 16, 2]), (True, [16, 16, 16])])
def test_an_epoch_covers_every_sample_once(drop_last: bool, sizes: list[int]):
    data = data_of(drop_last=drop_last)
    batches = epoch_of(data)
    assert [len(batch[1]) for batch in batches] == sizes
    assert steps_per_epoch(50, data.protocol) == len(sizes)
    indices = torch.cat([batch[2] for batch in batches])
    assert len(indices.unique()) == sum(sizes)
    assert not torch.equal(indices.sort().values, indices), "the order is not shuffled"
    for inputs, labels, at in batches:
        assert torch.equal(labels, data.train.labels[at])
        assert torch.equal(inputs, normalise(data.train.images[at], data.normalisation))


def test_an_exact_number_of_batches_has_no_empty_one():
    assert [len(batch[1]) for batch in epoch_of(data_of(train=48))] == [16, 16, 16]


def test_a_batch_under_another_normalisation_shows_the_same_crops():
    batch = next(data_of(crop_padding=2, flip=True).batches(0, 1))
    other = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.3, 0.4, 0.5), (0.1, 0.2, 0.3)))
    assert torch.allclose(batch.inputs(other), batch.student().inputs * std + mean, atol=1e-6)
    assert batch.inputs(((0.3, 0.4, 0.5), (0.1, 0.2, 0.3))) is batch.student().inputs
    logits = torch.randn(16, CLASSES)
    labels = batch.student().labels
    wanted = -logits.log_softmax(1)[torch.arange(16), labels].mean()
    assert float(batch.student().loss(logits)) == pytest.approx(float(wanted), rel=1e-5)


def test_holdout_splits_the_training_set_once():
    whole, data = data_of(), data_of(holdout=15)
    assert data.info.num_samples == 35 and len(data.train.labels) == 35 and len(data.test.labels) == 15
    assert data.info.labels is not None and torch.equal(data.info.labels, data.train.labels)

    def content(split: Split) -> set[bytes]:
        return {image.numpy().tobytes() for image in split.images}

    assert content(data.train).isdisjoint(content(data.test))
    assert content(data.train) | content(data.test) == content(whole.train)
    assert content(data.test).isdisjoint(content(whole.test))
    by_image = {i.numpy().tobytes(): int(y) for i, y in zip(whole.train.images, whole.train.labels, strict=True)}
    for split in (data.train, data.test):
        assert [by_image[i.numpy().tobytes()] for i in split.images] == split.labels.tolist()
    torch.manual_seed(5)
    assert torch.equal(data_of(holdout=15).test.images, data.test.images)
    for seed in (0, 1):
        indices = torch.cat([batch[2] for batch in epoch_of(data, seed=seed)])
        assert sorted(indices.tolist()) == list(range(35))


@pytest.mark.parametrize("count", [20, 500, 1203])
def test_evaluate_equals_a_plain_count(count: int):
    data = data_of(test=count)
    weight = torch.randn(3 * 8 * 8, CLASSES, generator=torch.Generator().manual_seed(0))
    seen = []

    def predict(x: Tensor) -> Mapping[str, Tensor]:
        seen.append(x)
        logits = x.flatten(1) @ weight
        return {"": logits, "negated": -logits}

    metrics = data.evaluate(predict)
    inputs = normalise(data.test.images, data.normalisation)
    assert torch.equal(torch.cat(seen), inputs)
    logits = (inputs.flatten(1) @ weight).double().numpy()
    labels = data.test.labels.numpy()
    for name, sign in (("", 1), ("negated", -1)):
        ranked = np.argsort(-sign * logits, axis=1)
        top1 = 100 * float(np.mean(ranked[:, 0] == labels))
        top5 = 100 * float(np.mean([labels[i] in ranked[i, :5] for i in range(count)]))
        assert metrics[name] == pytest.approx({"top1": top1, "top5": top5}, abs=1e-4)
    assert metrics[""]["top1"] < metrics[""]["top5"]


def test_evaluate_takes_another_normalisation_and_no_gradients():
    data, other = data_of(), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def predict(x: Tensor) -> Mapping[str, Tensor]:
        assert not torch.is_grad_enabled()
        assert torch.equal(x, normalise(data.test.images, other))
        return {"": torch.nn.functional.one_hot(data.test.labels, CLASSES).float()}

    assert data.evaluate(predict, other)[""] == {"top1": 100.0, "top5": 100.0}


def test_top5_of_few_classes():
    """Two classes have no five best; the right one is always among the two."""
    split = Split(images_of(10).images, torch.arange(10) % 2)
    data = ImageData(split, split, 2, protocol(), CPU)
    assert data.evaluate(lambda x: {"": torch.zeros(len(x), 2)})[""]["top5"] == 100.0


def test_the_registry():
    assert {"digits", "cifar10", "cifar100"} <= set(task_names())
    with pytest.raises(UserError, match=r"unknown task 'cifar1000'; did you mean cifar100"):
        get_task("cifar1000")
    with pytest.raises(UserError, match="'digits' is registered already"):
        register_task(get_task("digits"))


@pytest.mark.parametrize("name", [name for name in task_names() if ":" not in name])
def test_a_task_s_teachers_are_verified_as_its_networks_read(name: str):
    """Under a protocol with other inputs no teacher could ever be found wrong."""
    task = get_task(name)
    usual = load_protocol(task.usual_protocol)
    assert get_task(usual.task).modality == task.modality
    assert bool(usual.crops) == isinstance(task, StreamTask)
    of_task = [p for known in protocol_names() if (p := load_protocol(known)).task == name]
    assert not of_task or usual in of_task


def test_a_task_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(tasks.TASKS, "_registered", {})
    reads = []

    def load(root: Path, download: bool) -> tuple[Split, Split]:
        reads.append((root, download))
        return images_of(30), images_of(10, seed=int(root.name == "other"))

    register_task(ImageTask("mine", CLASSES, load))
    task = get_task("mine")
    assert task.samples(tmp_path) == 30 and task.num_classes == CLASSES
    data = task.open(tmp_path, protocol(), CPU)
    assert data.info.num_samples == 30 and data.build("resnet8").shapes("pooled") == ((64,),)
    first = task.fingerprint(tmp_path, protocol())
    assert task.fingerprint(tmp_path, protocol()) == first and len(reads) == 1
    assert task.fingerprint(tmp_path / "other", protocol()) != first


def test_digits(tmp_path: Path):
    task, recipe = get_task("digits"), load_protocol("digits-demo")
    data = task.open(tmp_path, recipe, CPU)
    assert isinstance(data, ImageData)
    assert (len(data.train.labels), len(data.test.labels)) == (1437, 360) and data.input_shape == (3, 16, 16)
    assert data.train.images.dtype == torch.uint8 and data.train.labels.dtype == torch.int64
    assert sorted(data.train.labels.unique().tolist()) == list(range(10))
    assert int(data.train.images.max()) == 255
    content = {i.numpy().tobytes() for i in data.train.images}
    assert sum(i.numpy().tobytes() in content for i in data.test.images) <= 5  # some digits look alike, byte for byte
    assert task.fingerprint(tmp_path, recipe) == task.fingerprint(tmp_path / "anywhere", recipe)


def test_digits_are_never_mirrored(tmp_path: Path):
    """Every training image under the demo's protocol is a shifted copy of its original."""
    recipe = load_protocol("digits-demo")
    assert not recipe.flip and recipe.crop_padding == 1
    data = get_task("digits").open(tmp_path, recipe, CPU)
    assert isinstance(data, ImageData)
    padded = torch.nn.functional.pad(data.train.images, (0, 0, 1, 1, 1, 1))
    windows = torch.stack([padded[:, dy : dy + 16, dx : dx + 16] for dy in range(3) for dx in range(3)], 1)
    for batch in data.batches(0, 1):
        shifted = windows[batch.indices] == batch.images[:, None]
        assert bool(shifted.flatten(2).all(2).any(1).all())


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_without_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    task = get_task(name)
    for download in (True, False):
        one_line(lambda d=download: task.samples(tmp_path, download=d), name.upper(), folder, "--data-root")  # type: ignore[misc]
    (tmp_path / "file").touch()  # a data root that cannot be written is one without data, too
    one_line(lambda: get_task(name).samples(tmp_path / "file" / "data"), name.upper(), folder, "--data-root")
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "train").write_bytes(b"half")
    one_line(lambda: task.samples(tmp_path), "damaged or incomplete", "unpack it again")


def test_jobs_that_begin_at_the_same_moment_download_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    downloads: list[str] = []

    class Slow:
        def __init__(self, root: str, train: bool = True, download: bool = False):
            place = Path(root, "cifar-10-batches-py")
            if download:
                downloads.append(root)
                place.mkdir()
                time.sleep(0.2)
                (place / "whole").touch()
            assert (place / "whole").is_file()
            self.data, self.targets = np.zeros((1, 32, 32, 3), np.uint8), [0]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Slow)
    with ThreadPoolExecutor(3) as jobs:
        assert len(list(jobs.map(lambda _: cifar.load("CIFAR10", tmp_path, True), range(3)))) == 3
    assert len(downloads) == 1 and {path.name for path in tmp_path.iterdir()} == {
        "cifar-10-batches-py", ".cifar-10-batches-py.lock"
    }  # fmt: skip


@pytest.mark.real_data
def test_cifar100(real_data: RealData):
    root = real_data(CIFAR100)
    train, test = cifar.load("CIFAR100", root, False)
    assert train.images.shape == (50_000, 32, 32, 3) and test.images.shape == (10_000, 32, 32, 3)
    assert torch.equal(train.labels.bincount(), torch.full((100,), 500))
    assert torch.equal(test.labels.bincount(), torch.full((100,), 100))
    recipe = load_protocol("cifar100-crd240")
    task = get_task("cifar100")
    assert task.fingerprint(root, recipe) == task.official_fingerprint != ""
    values = train.images.reshape(-1, 3).double() / 255
    assert values.mean(0).tolist() == pytest.approx(recipe.mean, abs=1e-3)
    assert values.mean(0).tolist() == pytest.approx((0.5071, 0.4867, 0.4408), abs=1e-3)
    assert values.std(0).tolist() == pytest.approx(recipe.std, abs=2e-3)
    folder = next(root / place for place in CIFAR100 if (root / place).is_dir())
    for place in (folder.parent, folder):
        again, _ = cifar.load("CIFAR100", place, False)
        assert torch.equal(again.labels, train.labels)


def test_generators_of_one_purpose_agree_and_of_two_do_not():
    draws = [torch.rand(4, generator=generator(*key)) for key in ((0, "order", 1), (0, "order", 1), (0, "order", 2))]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_the_second_view_is_a_function_of_seed_epoch_and_step():
    views = {"second_view": "randaugment", "crop_padding": 2, "flip": True}
    data = data_of(**views)

    def second(seed: int, epoch: int, step: int) -> Tensor:
        batch = next(iter(data.batches(seed, epoch, step))).student(2)
        assert batch.second is not None and batch.second.shape == batch.inputs.shape
        return batch.second

    assert torch.equal(second(0, 1, 1), second(0, 1, 1))
    assert not any(torch.equal(second(0, 1, 1), second(*other)) for other in ((1, 1, 1), (0, 2, 1), (0, 1, 0)))
    first = [batch.student(2).inputs for batch in data.batches(0, 1)]
    plain = [batch.student().inputs for batch in data_of(crop_padding=2, flip=True).batches(0, 1)]
    assert all(map(torch.equal, first, plain)), "asking for a second view changes nothing in the first"
    with pytest.raises(UserError, match="one view"):
        next(iter(data_of().batches(0, 1))).student(2)
