"""The operators that stand in for those of mmcv's compiled extension, against loops over boxes and pixels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.detection import needs_mmdetection, overlap
from torch import Tensor

from benchmarks.detection.networks import configurations

needs_mmdetection()


@pytest.fixture(scope="module")
def ops() -> Any:
    configurations.prepare()
    import mmcv.ops

    return mmcv.ops


def boxes(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([low, low + 2 + 25 * torch.rand(count, 2, generator=generator)], 1), torch.rand(
        count, generator=generator
    )


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_what_no_better_box_covers(ops: Any, offset: int):
    corners, scores = boxes(60)
    wanted: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(corners[i], corners[j], offset) <= 0.4 for j in wanted):
            wanted.append(i)
    left, places = ops.nms(corners, scores, 0.4, offset=offset)
    assert places.tolist() == wanted and len(wanted) < 60
    assert torch.equal(left, torch.cat([corners, scores[:, None]], 1)[wanted])


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_lowers_scores_by_overlap(ops: Any, method: str):
    corners, scores = boxes(40, 1)
    left, expected = {i: float(s) for i, s in enumerate(scores)}, []
    while left:
        best = max(left, key=left.__getitem__)
        expected.append((best, left.pop(best)))
        for i in list(left):
            iou = overlap(corners[best], corners[i], 0)
            factors = {"gaussian": math.exp(-(iou**2) / 0.5), "linear": 1 - iou if iou >= 0.3 else 1.0}
            left[i] *= factors.get(method, 0.0 if iou >= 0.3 else 1.0)
            if left[i] < 0.05:
                del left[i]
    left, places = ops.soft_nms(corners, scores, 0.3, 0.5, 0.05, method)
    assert places.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(left[:, 4], torch.tensor([s for _, s in expected]))


def sampled(x: Tensor, roi: Tensor, scale: float, size: int, ratio: int) -> Tensor:
    """RoIAlign of one region by its definition: averages of bilinear samples, from an image (C, H, W)."""
    left, top, right, bottom = (roi * scale - 0.5).unbind()
    step = (right - left) / size, (bottom - top) / size
    out = []
    for row in range(size):
        for column in range(size):
            total = 0
            for i in range(ratio):
                for j in range(ratio):
                    px = left + step[0] * (column + (j + 0.5) / ratio)
                    py = top + step[1] * (row + (i + 0.5) / ratio)
                    total = total + bilinear(x, float(px), float(py))
            out.append(total / ratio**2)
    return torch.stack(out, 1).unflatten(1, (size, size))


def bilinear(x: Tensor, px: float, py: float) -> Tensor:
    height, width = x.shape[1:]
    if not (-1 <= px <= width and -1 <= py <= height):
        return x[:, 0, 0] * 0
    px, py = min(max(px, 0.0), width - 1.0), min(max(py, 0.0), height - 1.0)
    x0, y0 = min(int(px), width - 1), min(int(py), height - 1)
    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
    a, b = px - x0, py - y0
    return (x[:, y0, x0] * (1 - a) + x[:, y0, x1] * a) * (1 - b) + (x[:, y1, x0] * (1 - a) + x[:, y1, x1] * a) * b


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_roi_align_and_its_gradient(ops: Any, dtype: torch.dtype, tolerance: float):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 10, dtype=dtype)
    corners, _ = boxes(5, 2)
    regions = torch.cat([torch.tensor([0.0, 1, 1, 0, 1])[:, None], corners], 1)
    ours, plain = x.clone().requires_grad_(), x.clone().float().requires_grad_()
    pooled = ops.roi_align(ours, regions.to(dtype), 3, 0.25, 2, "avg", True)
    expected = torch.stack([sampled(plain[int(r[0])], r[1:], 0.25, 3, 2) for r in regions.to(dtype).float()])
    weights = torch.randn_like(expected)
    pooled.backward(weights.to(dtype))
    expected.backward(weights)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.float(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours.grad.float(), plain.grad, atol=3 * tolerance, rtol=3 * tolerance)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_focal_loss_and_its_gradient(ops: Any, dtype: torch.dtype, tolerance: float, weighted: bool):
    torch.manual_seed(1)
    x = (3 * torch.randn(7, 4)).to(dtype)
    target = torch.tensor([0, 3, 4, 1, 4, 2, 2])  # 4 is background
    weight = torch.tensor([1.0, 2, 0.5, 3]).to(dtype) if weighted else None
    ours, plain = x.clone().requires_grad_(), x.clone().double().requires_grad_()
    p = plain.sigmoid()
    hot = F.one_hot(target, 5)[:, :4].bool()
    expected = torch.where(hot, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    if weight is not None:
        expected = expected * torch.cat([weight.double(), torch.ones(1).double()])[target][:, None]
    loss = ops.sigmoid_focal_loss(ours, target, 2.0, 0.25, weight, "sum")
    loss.backward()
    expected.sum().backward()
    torch.testing.assert_close(loss.double(), expected.sum(), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours.grad.double(), plain.grad, atol=tolerance, rtol=tolerance)


def test_other_operators_are_there_and_say_what_is_missing(ops: Any):
    with pytest.raises(NotImplementedError, match=r"'deform_conv_forward' is not among those.*compiled mmcv"):
        ops.DeformConv2dPack(2, 2, 3)(torch.randn(1, 2, 5, 5))
