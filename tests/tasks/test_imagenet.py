"""Images from files: classes, augmentation and crops, loader processes, what is said of bad ones."""

from __future__ import annotations

import multiprocessing
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from helpers.image_files import MEAN, STD, WNIDS, opened, recipe, write_images
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import RandAugment

from benchmarks.common.seeding import derive
from benchmarks.config.protocol import load_protocol, protocol_names
from benchmarks.config.recipe import Crops, Mixing
from benchmarks.tasks import get_task, streamed
from benchmarks.tasks.augmentation import cropping
from benchmarks.tasks.augmentation.mixing import draw
from benchmarks.tasks.augmentation.transforms import ErasingWithNoise, _auto_augment, _posterize, augmented
from benchmarks.tasks.data_sets import imagenet
from benchmarks.tasks.streamed import drawing
from kd_methods.errors import DiskError, UserError

MIXUP = Mixing(mixup=0.8)


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
    "augmented",
    [
        {},
        {"auto_augment": "rand-m9-mstd0.5-inc1", "erase": 0.5},
        {"erase": 0.5, "erase_fill": "noise"},
        {"color_jitter": 0.4},
        {"interpolation": "random", "test_interpolation": "bicubic"},
    ],
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
    assert whole[0][0].dtype == (torch.int16 if "erase_fill" in augmented else torch.uint8)
    assert whole[0][0].shape == (4, 32, 32, 3)
    in_order = [list(data.augmented(0, 5)) for data in (with_workers, alone)]
    assert torch.equal(torch.cat([batch.indices for batch in in_order[0]]), torch.arange(alone.info.num_samples))
    for ours, theirs in zip(*in_order, strict=True):
        assert torch.equal(ours.images, theirs.images) and not torch.equal(
            ours.images, alone.clean(ours.indices).images
        )


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original"])
def test_timms_augmentations_run_at_any_strength(tmp_path: Path, policy: str) -> None:
    """Posterising to no bits at all, too, which recent versions of Pillow refuse."""
    transform = _auto_augment(Crops(auto_augment=policy), MEAN)
    picture = Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8))
    with drawing(0):
        for _ in range(1000):
            transform(picture)
    assert np.asarray(_posterize(picture, 0)).max() == 0 and np.asarray(_posterize(picture, 1)).max() == 128


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
def test_augmentations_resample_as_those_of_timms_recipes(interpolation: Any) -> None:
    policy = "rand-m9-mstd0.5-inc1"
    theirs = create_transform(32, is_training=True, auto_augment=policy, interpolation=interpolation, mean=MEAN)
    (augment,) = [step for step in theirs.transforms if isinstance(step, RandAugment)]
    crops = Crops(size=32, auto_augment=policy, interpolation=interpolation, test_interpolation="bicubic")
    ours = _auto_augment(crops, MEAN)
    assert [operation.kwargs for operation in ours.ops] == [operation.kwargs for operation in augment.ops]


def test_evaluation_sees_the_middle_of_each_image(tmp_path: Path) -> None:
    data = opened(write_images(tmp_path))
    (images, labels), *more = list(data.tested())
    assert sum(len(labels_of_batch) for _, labels_of_batch in more) + len(labels) == data.test_samples == 6
    with Image.open(data.images.splits[1].root / data.images.splits[1].paths[3]) as file:
        wanted = TF.center_crop(TF.resize(file.convert("RGB"), 36), 32)
    assert torch.equal(images[3], torch.from_numpy(np.array(wanted)))
    assert torch.equal(data.clean(torch.tensor([3]), test=True).images[0], images[3])
    assert [len(batch) for batch in data.cleaned(torch.arange(10), 4)] == [4, 4, 2]


def test_bad_images_and_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="put folders train and val"):
        imagenet.find(tmp_path)
    root = write_images(tmp_path / "a")
    (root / "train" / WNIDS[1] / "2.JPEG").write_bytes(b"no image")
    with pytest.raises(DiskError, match=r"^/\S*2.JPEG is no readable image \(\w*\); replace it$"):
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

    monkeypatch.setattr(streamed, "PATIENCE", 1)
    held: list[Any] = []
    process = multiprocessing.get_context("fork").Process(target=left_behind)
    process.start()
    try:
        process.join(timeout=60)
        assert process.exitcode is not None, "a process waits at its end for workers that never end"
    finally:
        process.kill()
        process.join()


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
    (folder / "val" / "val_annotations.txt").touch()
    with pytest.raises(UserError, match=r"val_annotations.txt is empty; unpack it again"):
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
        y, x = cropping.turned(y, x, size, torch.tensor([angle]))
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        sampled = picture[y.clamp(0, height - 1), x.clamp(0, width - 1)][0] * inside[0, ..., None]
        assert torch.equal(sampled, TF.rotate(picture.permute(2, 0, 1), angle).permute(1, 2, 0)), angle


def test_a_name_without_a_file_and_one_that_is_no_text(tmp_path: Path) -> None:
    root = write_images(tmp_path)
    task, image = get_task("imagenet"), next(root.rglob("*.JPEG"))
    odd = image.with_name(b"caf\xe9.JPEG".decode(errors="surrogateescape"))
    image.rename(odd)
    assert task.fingerprint(root, recipe())
    gone = image.with_name("gone.JPEG")
    gone.symlink_to(tmp_path / "nowhere")
    task._cache.clear()
    with pytest.raises(UserError, match=r"gone\.JPEG: No such file or directory; replace or remove it"):
        task.fingerprint(root, recipe())


@pytest.mark.parametrize("name", [name for name in protocol_names() if load_protocol(name).crops])
def test_processes_that_load_images_can_be_handed_the_augmentation(name: str) -> None:
    protocol = load_protocol(name)
    again = pickle.loads(pickle.dumps(augmented(protocol.crops, protocol.flip, protocol.mean, protocol.std)))
    assert again(Image.new("RGB", (300, 260))).shape == (3, protocol.crops.size, protocol.crops.size)


def test_erased_parts_are_timms_noise_in_what_networks_see(tmp_path: Path) -> None:
    """As timm's transform erases the normalised image, up to whole grey levels; other pixels stay as they were."""
    from timm.data.random_erasing import RandomErasing

    root, crops = write_images(tmp_path), Crops(size=32, test_resize=36, workers=0, erase=1.0, erase_fill="noise")
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8))
    erased = ErasingWithNoise(1.0, MEAN, STD)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    noise, shares = [], []
    for seed in range(200):
        with drawing(seed):
            ours = erased(pixels)
        with drawing(seed):
            theirs = (pixels / 255 - mean) / std
            RandomErasing(1.0, mode="pixel", device="cpu")(theirs)
        assert ours.dtype == torch.int16
        assert ((ours / 255 - mean) / std - theirs).abs().max() < 0.5001 / 255 / std.min()
        changed = (theirs - (pixels / 255 - mean) / std).abs().amax(0) > 1e-5
        assert torch.equal(ours[:, ~changed], pixels[:, ~changed].short())
        noise.append(((ours / 255 - mean) / std)[:, changed].flatten())
        shares.append(float(changed.float().mean()))
    values = torch.cat(noise)
    assert abs(float(values.mean())) < 0.01 and abs(float(values.std()) - 1) < 0.01
    assert values.abs().max() > 3.5, "not cut off at black and white"
    assert min(shares) > 0.02 * 0.8 and max(shares) < 1 / 3 * 1.1 and 0.14 < float(np.mean(shares)) < 0.21
    with drawing(0):
        assert torch.equal(ErasingWithNoise(0.0, MEAN, STD)(pixels), pixels.short())

    data = opened(root, crops=crops)
    batch, mixed = next(iter(data.batches(0, 1))), next(iter(opened(root, crops=crops, mixing=MIXUP).batches(0, 1)))
    assert batch.images.dtype == mixed.images.dtype == torch.int16
    assert int(batch.images.min()) < 0 and int(batch.images.max()) > 255
    share = draw(MIXUP, (32, 32), derive(0, "mixing", 1, 0)).share
    average = batch.images * share + batch.images.flip(0) * (1 - share)
    assert (mixed.images - average).abs().max() <= 0.501, "erased first, then mixed"
    seen, other = batch.student().inputs, batch.inputs(((0.5,) * 3, (0.25,) * 3))
    torch.testing.assert_close(seen * std + mean, other * 0.25 + 0.5)  # the teacher sees the same image
    assert data.clean(torch.arange(2)).images.dtype == torch.uint8
