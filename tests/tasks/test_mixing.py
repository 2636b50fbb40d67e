"""Mixup and CutMix: what is mixed with what, in which shares, for whom."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.images import CLASSES, data_of
from timm.data.mixup import FastCollateMixup, cutmix_bbox_and_lam, mixup_target
from timm.loss import BinaryCrossEntropy

from benchmarks.common.seeding import generator
from benchmarks.config.recipe import Mixing
from benchmarks.networks import build_network
from benchmarks.tasks.augmentation.mixing import Mix, draw
from benchmarks.tasks.images import ImageBatch
from benchmarks.training.loop import shared
from benchmarks.training.optimizers import parts_of_batch
from benchmarks.training.shared_teacher import SharedTeacher
from kd_methods.contract import Needs

BOTH = {"mixup": 0.8, "cutmix": 1.0}
OTHERS = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def batches(epoch: int = 1, **changes: Any) -> list[ImageBatch]:
    """Those of an epoch; the last one has two images."""
    return list(data_of(**{"mixing": BOTH, **changes}).batches(3, epoch))


def test_images_are_mixed_as_timms_loader_does_it():
    """The pixels of mixup with their rounding, and those of CutMix, given the shares."""
    images = torch.randint(0, 256, (6, 8, 8, 3), dtype=torch.uint8)
    rows = [(image.permute(2, 0, 1), 0) for image in images]
    for mix in (Mix(0.3), Mix(0.75), Mix(1 - 12 / 64, (2, 5, 0, 4))):
        theirs = FastCollateMixup(num_classes=CLASSES)
        box = mix.box and (mix.box, mix.share)
        out = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
        theirs._params_per_batch = lambda m=mix: (m.share, m.box is not None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("timm.data.mixup.cutmix_bbox_and_lam", lambda *_, b=box, **__: b)
            assert theirs._mix_batch_collate(out, rows) == mix.share
        assert torch.equal(mix.images(images).permute(0, 3, 1, 2), out)


def test_soft_labels_are_timms_and_sum_to_1():
    labels = torch.tensor([0, 4, 4, 6, 2])
    for share, smoothing in itertools.product((0.0, 0.2, 0.5, 1.0), (0.0, 0.1)):
        soft = Mix(share).soft_labels(labels, CLASSES, smoothing)
        assert torch.allclose(soft, mixup_target(labels, CLASSES, share, smoothing))
        assert torch.allclose(soft.sum(1), torch.ones(5))


def test_the_share_of_cutmix_is_that_of_its_pixels():
    """timm's formula, clipping included, from the same side and place."""
    for seed in range(200):
        mix = draw(Mixing(cutmix=1.0), (12, 20), seed)
        assert mix.box
        images = torch.zeros(2, 12, 20, 3, dtype=torch.uint8)
        images[1] = 1
        assert mix.images(images)[0].float().mean().item() == pytest.approx(1 - mix.share)
    state = np.random.RandomState(5)  # theirs draws from numpy's global generator
    share = [state.random_sample(), state.beta(1.0, 1.0)][1]
    mine = draw(Mixing(cutmix=1.0), (12, 20), 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "randint", lambda low, high, size=None: state.randint(high))
        (top, bottom, left, right), corrected = cutmix_bbox_and_lam((3, 12, 20), share)
    assert mine == Mix(pytest.approx(corrected), (top, bottom, left, right))


def test_shares_have_the_distribution_that_the_protocol_names():
    drawn = [draw(Mixing(**BOTH), (32, 32), seed) for seed in range(2000)]
    assert 0.45 < sum(mix.box is not None for mix in drawn) / 2000 < 0.55
    shares = torch.tensor([mix.share for mix in drawn if mix.box is None])
    assert abs(float(shares.mean()) - 0.5) < 0.03 and abs(float(shares.var()) - 1 / (4 * 2.6)) < 0.01
    assert all(draw(Mixing(mixup=0.2), (4, 4), seed).box is None for seed in range(50))


def test_what_is_drawn_depends_on_seed_epoch_and_step_alone():
    whole = batches()
    later = list(data_of(mixing=BOTH).batches(3, 1, start=2))
    for one, other in zip(whole[2:], later, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.soft_labels is not None and torch.equal(one.soft_labels, other.soft_labels)
    shares = {float(batch.soft_labels.max()) for epoch in (1, 2) for batch in batches(epoch)}
    assert len(shares) > 4


def test_labels_and_positions_are_those_of_the_larger_share():
    data, flipped = data_of(mixing={"mixup": 1.0}), set()
    for epoch in range(1, 6):
        for (_, chosen), batch in zip(data.order(3, epoch, 0), data.batches(3, epoch), strict=True):
            soft = batch.soft_labels
            assert soft is not None and torch.equal(batch.labels, data.labels[batch.indices])
            assert (soft.gather(1, batch.labels[:, None]) >= 0.5).all()
            assert torch.equal(batch.indices, chosen) or torch.equal(batch.indices, chosen.flip(0))
            flipped.add(torch.equal(batch.indices, chosen))
    assert flipped == {True, False}


def test_teacher_and_student_see_the_identical_mixed_image():
    data = data_of(mixing=BOTH)
    teacher = SharedTeacher(build_network("resnet8", CLASSES, (3, 8, 8)).eval(), OTHERS, data.protocol)
    asked: list[torch.Tensor] = []
    forward = teacher.network.fold_batch_norms().forward
    teacher.network.fold_batch_norms().forward = lambda x, **named: asked.append(x) or forward(x, **named)
    for batch, unmixed in zip(data.batches(3, 1), batches(mixing=None), strict=True):
        teacher.outputs(batch, [Needs(teacher=("logits",))])
        student = batch.student().inputs
        pixels = [
            (x.permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)) * 255
            for x, (mean, std) in ((student, data.normalisation), (asked.pop(), OTHERS))
        ]
        assert torch.equal(pixels[0].round(), pixels[1].round()) and torch.equal(pixels[0].round().byte(), batch.images)
        assert not torch.equal(batch.images, unmixed.images)


def test_both_views_are_mixed_alike():
    """The same pairs in the same shares: the labels hold for both, and a term across views compares one mixture."""
    data = data_of(mixing=BOTH, second_view="randaugment")
    differ = [batch.student(2) for batch in data.batches(3, 1)]
    assert not any(torch.equal(batch.inputs, batch.second) for batch in differ if batch.second is not None)
    first = data._cropped
    # A second view that is the first one, before both are mixed.
    data._second_view = lambda seed, epoch, step, chosen: first(chosen, generator(seed, "augmentation", epoch, step))
    for batch in data.batches(3, 1):
        seen = batch.student(2)
        assert seen.second is not None and torch.equal(seen.inputs, seen.second)


def test_a_batch_in_parts_is_mixed_as_a_whole():
    (whole, *_), (again, *_) = batches(), batches()
    pieces = [part.of(again).student() for part in parts_of_batch(len(again), 3)]
    batch = whole.student()
    assert torch.equal(torch.cat([piece.inputs for piece in pieces]), batch.inputs)
    assert torch.equal(torch.cat([piece.soft_labels for piece in pieces]), batch.soft_labels)
    inputs, _ = shared(again, next(parts_of_batch(len(again), 3)), None, [])
    assert inputs.soft_labels is not None and len(inputs.soft_labels) == len(inputs.labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_task_loss_with_soft_labels_is_torchs(smoothing: float):
    for changes in ({}, {"task_loss": "bce"}):
        batch = batches(label_smoothing=smoothing, **changes)[0].student()
        logits = torch.randn(len(batch.labels), CLASSES)
        assert batch.soft_labels is not None and torch.allclose(batch.soft_labels.sum(1), torch.ones(len(logits)))
        theirs = F.binary_cross_entropy_with_logits if changes else F.cross_entropy
        assert torch.equal(batch.loss(logits), theirs(logits, batch.soft_labels))
        assert torch.equal(batch.targets, batch.soft_labels)


def test_binary_cross_entropy_of_single_images_is_timms():
    batch = batches(mixing=None, label_smoothing=0.1, task_loss="bce")[0].student()
    logits = torch.randn(len(batch.labels), CLASSES)
    assert batch.soft_labels is None and batch.targets is batch.labels
    assert torch.allclose(batch.loss(logits), BinaryCrossEntropy(smoothing=0.1)(logits, batch.labels))


def test_repeats_show_each_image_as_often_and_augmented_anew():
    data = data_of(48, repeats=3, crop_padding=2)
    batches = list(data.batches(0, 1))
    assert [len(batch) for batch in batches] == [16, 16, 16], "an epoch is as long as before"
    counts = torch.bincount(torch.cat([batch.indices for batch in batches]), minlength=48)
    assert sorted(counts.tolist()) == [0] * 32 + [3] * 16
    first = batches[0]
    copies = first.images[first.indices == first.indices[0]]
    assert len(copies) == 3 and len({image.sum().item() for image in copies}) > 1
    other = torch.cat([batch.indices for batch in data.batches(0, 2)])
    assert set(other.tolist()) != set(torch.cat([batch.indices for batch in batches]).tolist())
