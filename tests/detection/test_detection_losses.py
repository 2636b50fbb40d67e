"""Losses on detectors' features and answers, against loops and against mmdetection."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.detection import needs_mmdetection, overlap
from torch import Tensor

from benchmarks.detection.networks import configurations
from kd_methods import functional

needs_mmdetection()


def test_object_masks_weigh_by_the_smallest_object():
    objects = torch.tensor([[0.0, 0, 15, 15], [8, 8, 31, 31]]), torch.zeros(0, 4)
    foreground, background = functional.object_masks(objects, (32, 32), (8, 8))
    expected = torch.zeros(8, 8)
    expected[2:8, 2:8] = 1 / 49  # from 2 to ceil(7.75), both counted
    expected[0:5, 0:5] = torch.maximum(expected[0:5, 0:5], torch.tensor(1 / 25))
    torch.testing.assert_close(foreground[0], expected)
    assert foreground[1].count_nonzero() == 0
    torch.testing.assert_close(background[0], (expected == 0) / (expected == 0).sum())
    torch.testing.assert_close(background[1], torch.full((8, 8), 1 / 64))


def test_focal_features_by_loops():
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    masks = torch.rand(2, 4, 5), torch.rand(2, 4, 5)
    places, channels = torch.zeros(2, 2, 4, 5), torch.zeros(2, 2, 3)
    for k, x in enumerate((s, t)):
        for b in range(2):
            places[k, b] = 20 * (x[b].abs().mean(0).flatten() / 0.5).softmax(0).view(4, 5)
            channels[k, b] = 3 * (x[b].abs().mean((1, 2)) / 0.5).softmax(0)
    error = sum((s[:, c] - t[:, c]) ** 2 * places[1] * channels[1, :, c, None, None] for c in range(3))
    expected = [(error * mask).sum() / 2 for mask in masks]
    expected.append(((places[0] - places[1]).abs().sum() + (channels[0] - channels[1]).abs().sum()) / 2)
    torch.testing.assert_close(torch.stack(functional.focal_features(s, t, *masks)), torch.stack(expected))


def test_channel_wise_by_loops():
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = 0.0
    for b in range(2):
        for c in range(3):
            p, q = (t[b, c].flatten() / 2).softmax(0), (s[b, c].flatten() / 2).softmax(0)
            expected += float((p * (p / q).log()).sum())
    assert float(functional.channel_wise(s, t, temperature=2.0)) == pytest.approx(4 * expected / 6, rel=1e-5)


def test_pearson_is_one_minus_the_correlation():
    torch.manual_seed(0)
    s, t = torch.randn(4, 3, 6, 5), torch.randn(4, 3, 6, 5)
    rows = [(x[:, c].flatten()) for c in range(3) for x in (s, t)]
    correlations = [torch.corrcoef(torch.stack(rows[i : i + 2]))[0, 1] for i in (0, 2, 4)]
    expected = 1 - torch.stack(correlations).mean()
    # The sum over N elements stands over N - 1 in the standard deviation.
    assert float(functional.pearson(s, t)) == pytest.approx(float(expected) * 119 / 120, rel=1e-4)
    assert float(functional.pearson(3 * t + 1, t)) == pytest.approx(0, abs=1e-6)


def test_localization_agrees_with_mmdet():
    configurations.prepare()
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss

    torch.manual_seed(0)
    s, t, weights = torch.randn(6, 4, 17) * 4, torch.randn(6, 4, 17) * 4, torch.rand(6)
    theirs = KnowledgeDistillationKLDivLoss(loss_weight=0.25, T=10)
    each = weights[:, None].expand(-1, 4).reshape(-1)
    summed = theirs(s.view(-1, 17), t.view(-1, 17), weight=each, avg_factor=4.0)
    assert float(0.25 * functional.localization(s, t, weights)) == pytest.approx(float(summed), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: functional.channel_wise(s, t),
        lambda s, t: functional.pearson(s, t),
        lambda s, t: torch.stack(functional.focal_features(s, t, torch.ones(2, 4, 5), torch.ones(2, 4, 5))).sum(),
        lambda s, t: functional.localization(s[:, :4, :, 0], t[:, :4, :, 0], torch.ones(2)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_no_gradient_where_both_agree_and_finite_far_off(loss: Callable[..., Tensor], scale: float):
    torch.manual_seed(0)
    t = torch.randn(2, 4, 4, 5) * scale
    s = t.clone().requires_grad_()
    loss(s, t).backward()
    assert float(s.grad.abs().max()) < 1e-5
    far = torch.randn_like(t) * scale
    assert torch.isfinite(loss(far.half(), t.half()))


def test_valuable_region_by_loops():
    """By the definition, anchor by anchor and object by object."""
    generator = torch.Generator().manual_seed(3)
    counts = [40, 12, 3]
    low = torch.rand(55, 2, generator=generator) * 60
    sides = torch.cat([torch.full((n, 1), side) for n, side in zip(counts, (12.0, 24.0, 48.0), strict=True)])
    anchors, objects = torch.cat([low, low + sides], 1), torch.tensor([[10.0, 10, 40, 34], [30, 28, 66, 70]])
    expected = torch.zeros(55)
    for corners in objects:
        centre = (corners[:2] + corners[2:]) / 2
        candidates, start = [], 0
        for count in counts:
            far = [float(((anchors[i, :2] + anchors[i, 2:]) / 2 - centre).norm()) for i in range(start, start + count)]
            candidates += [start + i for i in sorted(range(count), key=far.__getitem__)[:9]]
            start += count
        values = torch.tensor([overlap(anchors[i], corners, 0) for i in candidates])
        threshold = float(values.mean() + values.std())
        for i, anchor in enumerate(anchors):
            hull = torch.cat([torch.minimum(anchor[:2], corners[:2]), torch.maximum(anchor[2:], corners[2:])])
            apart = ((anchor[:2] + anchor[2:]) / 2 - centre).pow(2).sum() / (hull[2:] - hull[:2]).pow(2).sum()
            distance = overlap(anchor, corners, 0) - float(apart)
            if 0.25 * threshold <= distance < threshold:
                expected[i] = max(float(expected[i]), overlap(anchor, corners, 0))
    region = functional.valuable_region(anchors, counts, objects)
    torch.testing.assert_close(region, expected, atol=1e-5, rtol=1e-5)
    assert 0 < int((region > 0).sum()) < 55
    assert not functional.valuable_region(anchors, counts, objects[:0]).any()
    near = functional.near_region(anchors, objects)
    best = [max(overlap(a, corners, 0) for a in anchors) for corners in objects]
    assert near.tolist() == [
        any(overlap(a, corners, 0) > 0.5 * top for corners, top in zip(objects, best, strict=True)) for a in anchors
    ]


def test_classes_of_places_are_averaged_within_levels():
    torch.manual_seed(0)
    s, t, level = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 0, 2, 2, 2])
    p, q = (t / 2).softmax(1), (s / 2).softmax(1)
    each = 4 * (p * (p / q).log()).mean(1)
    assert float(functional.place_classes(s, t, level)) == pytest.approx(
        float(each[:2].mean() + each[2:].mean()), rel=1e-5
    )
    assert float(functional.place_classes(s[:0], t[:0], level[:0])) == 0
