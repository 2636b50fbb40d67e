"""Tasks: what a batch is, what it depends on, what is measured, and what is said where there is no data."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from benchmarks import tasks
from benchmarks.common.seeding import generator
from benchmarks.config.protocol import Protocol, load_protocol, steps_per_epoch
from benchmarks.tasks import cifar, digits, get_task, randaugment, register_task, task_names
from benchmarks.tasks.images import ImageData, ImageTask, Split, augment, noisy, normalise
from kd_methods.errors import UserError

CPU = torch.device("cpu")
CLASSES = 7


def images_of(count: int, side: int = 8, seed: int = 0) -> Split:
    """Random images without a single black pixel, so that padding can be told from content."""
    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (count, side, side, 3), generator=draws).to(torch.uint8)
    return Split(images, torch.randint(0, CLASSES, (count,), generator=draws))


def protocol(**changes: Any) -> Protocol:
    base = {
        "name": "test",
        "version": 1,
        "task": "test",
        "epochs": 2,
        "batch_size": 16,
        "optimizer": {"lr": 0.1},
        "mean": (0.3, 0.4, 0.5),
        "std": (0.1, 0.2, 0.3),
    }
    return Protocol.model_validate({**base, **changes})


def data_of(train: int = 50, test: int = 20, **changes: Any) -> ImageData:
    return ImageData(images_of(train), images_of(test, seed=1), CLASSES, protocol(**changes), CPU)


# --- augmentation


def slow_augment(image: np.ndarray, down: int, right: int, mirrored: bool, padding: int) -> np.ndarray:
    """As a picture library does it: pad with black, cut a window out, mirror the window."""
    height, width = image.shape[:2]
    canvas = np.zeros((height + 2 * padding, width + 2 * padding, 3), np.uint8)
    canvas[padding : padding + height, padding : padding + width] = image
    window = canvas[padding + down : padding + down + height, padding + right : padding + right + width]
    return window[:, ::-1] if mirrored else window


@pytest.mark.parametrize("one", [False, True])
def test_one_crop_for_each_image_or_for_each_batch(one: bool):
    """Of a data set with one image only, a batch with one crop has equal images, and another batch another crop."""
    split = Split(images_of(1).images.expand(64, -1, -1, -1).contiguous(), torch.zeros(64, dtype=torch.long))
    usual = protocol(crop_padding=4, flip=True, one_crop_per_batch=one)
    batches = [batch.student().inputs for batch in ImageData(split, split, CLASSES, usual, CPU).batches(0, 1)]
    assert len(batches) == 4
    assert all(bool((batch == batch[0]).all()) == one for batch in batches)
    assert len({float(batch[0].sum()) for batch in batches}) > 1


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (3, False), (0, True), (4, True)])
def test_augment_equals_the_slow_reference(padding: int, flip: bool):
    split, count = images_of(40), 64
    indices = torch.randint(0, 40, (count,), generator=torch.Generator().manual_seed(2))
    found = augment(split.images, indices, torch.Generator().manual_seed(5), padding, flip)
    draws = torch.Generator().manual_seed(5)  # the same numbers again, in the documented order
    shifts = torch.zeros(2, count, dtype=torch.long)
    if padding:
        shifts = torch.randint(-padding, padding + 1, (2, count, 1), generator=draws)[..., 0]
    mirrored = torch.zeros(count, dtype=torch.bool)
    if flip:
        mirrored = torch.rand(count, 1, generator=draws)[:, 0] < 0.5
    assert found.dtype == torch.uint8 and found.shape == (count, 8, 8, 3)
    for i in range(count):
        wanted = slow_augment(
            split.images[indices[i]].numpy(), int(shifts[0, i]), int(shifts[1, i]), bool(mirrored[i]), padding
        )
        assert np.array_equal(found[i].numpy(), wanted), i


def test_augment_covers_every_crop_and_both_sides():
    """Every one of the (2p+1)^2 windows occurs, mirrored and not, about equally often."""
    single = torch.arange(1, 17).reshape(1, 4, 4, 1).expand(-1, -1, -1, 3).to(torch.uint8)
    count = 9 * 2 * 200
    crops = augment(single, torch.zeros(count, dtype=torch.long), torch.Generator().manual_seed(0), 1, True)
    kinds, occurrences = torch.unique(crops.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 18
    assert int(occurrences.min()) > 140 and int(occurrences.max()) < 260


def test_no_crop_and_no_flip_is_the_identity():
    split = images_of(10)
    indices = torch.tensor([3, 3, 9, 0])
    assert torch.equal(augment(split.images, indices, torch.Generator(), 0, False), split.images[indices])


def test_padding_is_black():
    white = torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    crops = augment(white, torch.zeros(200, dtype=torch.long), torch.Generator().manual_seed(0), 4, False)
    assert set(crops.unique().tolist()) == {0, 255}
    rows = (crops[..., 0] == 255).any(2).sum(1)
    columns = (crops[..., 0] == 255).any(1).sum(1)
    assert int(rows.min()) == 4 and int(rows.max()) == 8  # never more than the padding is lost
    assert torch.equal((crops[..., 0] == 255).sum((1, 2)), rows * columns)


def test_augment_leaves_the_images_alone():
    split = images_of(10)
    before = split.images.clone()
    crops = augment(split.images, torch.arange(10), torch.Generator().manual_seed(0), 2, True)
    crops.zero_()
    assert torch.equal(split.images, before)


def test_normalise():
    split = images_of(6)
    mean, std = (0.3, 0.4, 0.5), (0.1, 0.2, 0.3)
    before = split.images.clone()
    found = normalise(split.images, (mean, std))
    wanted = (split.images.numpy().astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    assert found.dtype == torch.float32 and found.shape == (6, 3, 8, 8)
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found.numpy(), wanted.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    assert torch.equal(split.images, before)


# --- batches


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


# --- evaluation


@pytest.mark.parametrize("count", [20, 500, 1203])
def test_evaluate_equals_a_plain_count(count: int):
    data = data_of(test=count)
    weight = torch.randn(3 * 8 * 8, CLASSES, generator=torch.Generator().manual_seed(0))
    seen = []

    def predict(x: Tensor) -> Mapping[str, Tensor]:
        seen.append(x)
        logits = x.flatten(1) @ weight
        return {"": logits, "negated": -logits}

    found = data.evaluate(predict)
    inputs = normalise(data.test.images, data.normalisation)
    assert torch.equal(torch.cat(seen), inputs)
    logits = (inputs.flatten(1) @ weight).double().numpy()
    labels = data.test.labels.numpy()
    for name, sign in (("", 1), ("negated", -1)):
        ranked = np.argsort(-sign * logits, axis=1)
        top1 = 100 * float(np.mean(ranked[:, 0] == labels))
        top5 = 100 * float(np.mean([labels[i] in ranked[i, :5] for i in range(count)]))
        assert found[name] == pytest.approx({"top1": top1, "top5": top5}, abs=1e-4)
    assert found[""]["top1"] < found[""]["top5"]


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


# --- the tasks


def test_the_registry():
    assert {"digits", "cifar10", "cifar100"} <= set(task_names())
    with pytest.raises(UserError, match=r"unknown task 'cifar1000'; did you mean cifar100"):
        get_task("cifar1000")
    with pytest.raises(UserError, match="'digits' is registered already"):
        register_task(get_task("digits"))


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


def write_images(folder: Path, classes: Mapping[str, int], colour: Callable[[int], tuple[int, int, int]]) -> None:
    from PIL import Image

    for position, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 50), colour(position)).save(folder / name / f"{i}.png")


def folder_task(folder: Path) -> ImageTask:
    task = get_task(f"folder:{folder}")
    assert isinstance(task, ImageTask)
    return task


@pytest.mark.parametrize("second", ["test", "val"])
def test_a_folder_of_images(tmp_path: Path, second: str):
    def colour(position: int) -> tuple[int, int, int]:
        return (10 + position, 100, 200)

    write_images(tmp_path / "train", {"cat": 3, "ant": 2}, colour)
    write_images(tmp_path / second, {"cat": 1, "ant": 1}, colour)
    task = folder_task(tmp_path)
    assert task.num_classes == 2 and task.samples(tmp_path) == 5
    data = task.open(tmp_path, protocol(), CPU)
    assert data.input_shape == (3, 32, 32)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1] and data.test.labels.tolist() == [0, 1]
    # Classes are the sorted names: "ant" was written second.
    assert data.train.images[0, 0, 0].tolist() == [11, 100, 200]
    assert data.train.images[-1, 5, 7].tolist() == [10, 100, 200]
    with torch.no_grad():
        assert data.build("resnet8")(next(data.batches(0, 1)).student().inputs).logits.shape == (5, 2)


def test_a_folder_is_known_by_its_content_wherever_it_lies(tmp_path: Path):
    for place in ("here", "there/now"):
        for part in ("train", "test"):
            write_images(tmp_path / place / part, {"a": 1, "b": 1}, lambda position: (position, 0, 0))
    here, there = folder_task(tmp_path / "here"), folder_task(tmp_path / "there" / "now")
    assert get_task(here.name) is here and get_task(f"folder:{tmp_path}/there/../here/") is here
    assert here.fingerprint(tmp_path, protocol()) == there.fingerprint(tmp_path, protocol())


def one_line(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_what_a_folder_may_lack(tmp_path: Path):
    one_line(lambda: get_task(f"folder:{tmp_path / 'none'}"), "there is no such folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    one_line(lambda: folder_task(empty).samples(tmp_path), "'train'", "train/CLASS/IMAGE")
    half = tmp_path / "half"
    write_images(half / "train", {"a": 1}, lambda position: (0, 0, 0))
    one_line(lambda: folder_task(half).samples(tmp_path), "'test'")
    (half / "test" / "a").mkdir(parents=True)
    one_line(lambda: folder_task(half).samples(tmp_path), str(half / "test"))
    other = tmp_path / "other"
    write_images(other / "train", {"a": 1, "b": 1}, lambda position: (0, 0, 0))
    write_images(other / "test", {"a": 1, "c": 1}, lambda position: (0, 0, 0))
    one_line(lambda: folder_task(other).samples(tmp_path), "classes", "differ")


def test_a_damaged_image_is_named(tmp_path: Path):
    for part in ("train", "test"):
        write_images(tmp_path / part, {"a": 2}, lambda position: (0, 0, 0))
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"no image")
    one_line(lambda: folder_task(tmp_path).samples(tmp_path), "1.png")


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
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "train").write_bytes(b"half")
    one_line(lambda: task.samples(tmp_path), "damaged or incomplete", "unpack it again")


@pytest.mark.real_data
def test_cifar100(real_data: Path):
    train, test = cifar.load("CIFAR100", real_data, False)
    assert train.images.shape == (50_000, 32, 32, 3) and test.images.shape == (10_000, 32, 32, 3)
    assert torch.equal(train.labels.bincount(), torch.full((100,), 500))
    assert torch.equal(test.labels.bincount(), torch.full((100,), 100))
    recipe = load_protocol("cifar100-crd240")
    values = train.images.reshape(-1, 3).double() / 255
    assert values.mean(0).tolist() == pytest.approx(recipe.mean, abs=1e-3)
    assert values.mean(0).tolist() == pytest.approx((0.5071, 0.4867, 0.4408), abs=1e-3)
    assert values.std(0).tolist() == pytest.approx(recipe.std, abs=2e-3)
    for place in (real_data / "cifar100", real_data / "cifar100" / "cifar-100-python"):
        again, _ = cifar.load("CIFAR100", place, False)
        assert torch.equal(again.labels, train.labels)


def test_generators_of_one_purpose_agree_and_of_two_do_not():
    draws = [torch.rand(4, generator=generator(*key)) for key in ((0, "order", 1), (0, "order", 1), (0, "order", 2))]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


# --- the second view


def pillow(operation: str, image: Image.Image, strength: float) -> Image.Image:
    """What the MLLD code does with Pillow."""
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    width = image.size[0]
    matrices = {
        "shear_x": (1, strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, strength, 1, 0),
        "translate_x": (1, 0, strength * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, strength * width),
    }
    if operation in enhancers:
        return enhancers[operation](image).enhance(strength)
    if operation in matrices:
        return image.transform(image.size, Image.Transform.AFFINE, matrices[operation])
    return {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "identity": lambda: image,
        "posterize": lambda: ImageOps.posterize(image, int(strength)),
        "rotate": lambda: image.rotate(strength),
        "solarize": lambda: ImageOps.solarize(image, strength),
    }[operation]()


@pytest.mark.parametrize(("operation", "low", "high"), randaugment.TABLE, ids=lambda x: getattr(x, "__name__", ""))
def test_operations_give_what_pillow_gives(operation: randaugment.Operation, low: float, high: float):
    images = torch.cat([images_of(20, side=12).images, images_of(20, side=12, seed=1).images // 3 + 40])
    images[0], images[1, :, :6] = 77, 200  # one level; two levels in a half
    strengths = low + (high - low) * torch.rand(len(images), generator=torch.Generator().manual_seed(3))
    found = operation(images.float(), strengths).clamp(0, 255).floor().int()
    for image, strength, ours in zip(images, strengths.tolist(), found, strict=True):
        name = operation.__name__.removeprefix("_")
        theirs = torch.from_numpy(np.array(pillow(name, Image.fromarray(image.numpy()), strength))).int()
        off = (ours - theirs).abs() > 1
        # Rotation may round a pixel's source to its neighbour.
        assert off.float().mean() <= (0.02 if name == "rotate" else 0), (name, strength)


def test_the_cut_out_square():
    x = torch.full((3, 10, 10, 3), 50.0)
    side, centre = torch.tensor([0.4, 0.4, 0.0]), torch.tensor([[0.5, 0.0, 0.5], [0.5, 1.0, 0.5]])
    found = randaugment.cut_out(x, side, centre)
    painted = (found == torch.tensor(randaugment.FILL, dtype=x.dtype)).all(3)
    inside = torch.zeros(3, 10, 10, dtype=torch.bool)
    inside[0, 3:8, 3:8] = True
    inside[1, :5, 8:] = True  # clipped at the corner; columns from x, rows from y; draws run from the far side
    assert torch.equal(painted, inside) and torch.equal(found[~inside], x[~inside])


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


def test_randaugment_draws_every_operation():
    images = images_of(400, side=8).images
    before = images.clone()
    found = randaugment.randaugment(images, torch.Generator().manual_seed(0))
    assert found.dtype == torch.uint8 and found.shape == images.shape and torch.equal(images, before)
    changed = (found != images).flatten(1).any(1).float().mean()
    assert changed > 0.9


def test_reflected_crops_are_numpys():
    split = digits.load(Path(), False)[0]
    chosen = torch.arange(40)
    found = augment(split.images, chosen, torch.Generator().manual_seed(3), 4, False, "reflect")
    draws = torch.Generator().manual_seed(3)
    shift = torch.randint(-4, 5, (2, 40, 1), generator=draws).squeeze(2)
    for i, (down, right) in enumerate(shift.t().tolist()):
        image = np.pad(split.images[i].numpy(), ((4, 4), (4, 4), (0, 0)), mode="reflect")
        assert np.array_equal(found[i].numpy(), image[4 + down : 20 + down, 4 + right : 20 + right])


def test_label_noise_changes_its_share_of_labels_to_others_whatever_the_seed():
    labels = torch.arange(1000) % 10
    found = noisy(labels, 0.4, 10)
    assert (found != labels).sum() == 400 and torch.equal(found, noisy(labels, 0.4, 10))
    assert found.min() >= 0 and found.max() < 10 and torch.equal(labels, torch.arange(1000) % 10)
    train, test = digits.load(Path(), False)
    protocol = load_protocol("digits-noise-demo")
    data = ImageData(train, test, 10, protocol, torch.device("cpu"))
    assert (data.info.labels != train.labels).sum() == round(0.4 * len(train.labels))
    assert torch.equal(data.test.labels, test.labels) and torch.equal(data.info.labels, data.train.labels)
    assert "40% of the training labels exchanged" in " ".join(protocol.lines())
