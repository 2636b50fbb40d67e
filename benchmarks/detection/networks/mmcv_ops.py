"""A stand-in for ``mmcv._ext``, mmcv's compiled operators, on those of torchvision, for the CPU and CUDA.

mmcv's own do not build against torch of today. What Faster R-CNN, RetinaNet, GFL and their like need is here: nms, soft
nms, RoIAlign and the sigmoid focal loss. Every other operator is there by name and says so when it is called.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

NAME = "mmcv._ext"


def install() -> None:
    """Put the stand-in in place; where mmcv has its compiled operators nothing is done.

    To be called before anything imports ``mmcv.ops`` or ``mmdet.models``.
    """
    if NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
        module = _StandIn(NAME)
        module.__spec__ = ModuleSpec(NAME, None)
        sys.modules[NAME] = module


class _StandIn(ModuleType):
    """A module in which every operator can be found; those that are missing raise when called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _OPERATORS:
            return _OPERATORS[name]

        def missing(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(
                f"mmcv's operator '{name}' is not among those that run without mmcv's compiled extension "
                f"({', '.join(_OPERATORS)}); use a model without it, or install a compiled mmcv"
            )

        return missing


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Positions (K,) of the boxes that stay, by falling score; boxes (N, 4) as corners.

    ``offset`` 1 counts pixels: a box from 3 to 3 is one wide.
    """
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, 1, 1])
    return torchvision.ops.nms(boxes.float(), scores.float(), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft NMS (Bodla et al. 2017): scores of boxes that overlap a better one are lowered, not removed.

    Fills the first rows of ``dets`` (N, 5) with corners and final scores, best first, and returns the positions of
    these boxes. ``method`` 0 is hard, 1 linear, 2 Gaussian.
    """
    left, place = scores.clone(), 0
    alive = torch.ones_like(scores, dtype=torch.bool)
    chosen = []
    while alive.any():
        best = int(torch.where(alive, left, -torch.inf).argmax())
        if place and left[best] < min_score:  # the best one always stays
            break
        dets[place, :4], dets[place, 4] = boxes[best], left[best]
        chosen.append(best)
        place += 1
        alive[best] = False
        overlap = _iou(boxes[best], boxes, offset)
        over = overlap >= iou_threshold
        factor = {0: (~over).to(left), 1: torch.where(over, 1 - overlap, 1), 2: torch.exp(-(overlap**2) / sigma)}[
            method
        ]
        left = torch.where(alive, left * factor, left)
        alive &= left >= min_score
    return torch.tensor(chosen, dtype=torch.long)


def _iou(box: Tensor, boxes: Tensor, offset: int) -> Tensor:
    low, high = torch.maximum(box[:2], boxes[:, :2]), torch.minimum(box[2:], boxes[:, 2:])
    inside = (high - low + offset).clamp(min=0).prod(1)
    area = lambda b: (b[..., 2:] - b[..., :2] + offset).prod(-1)  # noqa: E731
    return inside / (area(box) + area(boxes) - inside)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average RoIAlign of (B, C, H, W) at rois (N, 5) into ``output`` (N, C, h, w); pooling by maximum is missing."""
    if pool_mode != 1:
        raise NotImplementedError("RoIAlign by maximum needs mmcv's compiled extension; use pool_mode 'avg'")
    size = (aligned_height, aligned_width)
    x, boxes = input.contiguous(), rois.to(input.dtype)
    if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16):  # torchvision has none there
        x, boxes = x.float(), rois.float()
    output.copy_(torchvision.ops.roi_align(x, boxes, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` into ``grad_input``."""
    grad, boxes = grad_output, rois.to(grad_output.dtype)
    if grad.dtype in (torch.float16, torch.bfloat16):
        grad, boxes = grad.float(), rois.float()  # sums of many small terms
    geometry = (spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio, aligned)
    grad_input.copy_(torch.ops.torchvision._roi_align_backward(grad, boxes, *geometry))


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss (Lin et al. 2017, equation 5) of logits (N, K) against classes (N,) into ``output`` (N, K).

    A target of K or more is background. ``weight`` (K,) by class may be empty; it counts where the row's target is.
    """
    with torch.no_grad():
        output.copy_(_focal(input.float(), target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The derivative of every entry's loss by its logit."""
    x = input.detach().float().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(_focal(x, target, weight, gamma, alpha).sum(), x)
    grad_input.copy_(grad)


def _focal(x: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    classes = x.shape[1]
    hot = F.one_hot(target.clamp(max=classes), classes + 1)[:, :classes].to(x)
    loss = torchvision.ops.sigmoid_focal_loss(x, hot, alpha=alpha, gamma=gamma)
    if weight.numel():
        # As in mmcv's kernels: the row's own class decides; background has none.
        loss = loss * torch.cat([weight.float(), weight.new_ones(1).float()])[target.clamp(max=classes)][:, None]
    return loss


_OPERATORS = {
    operator.__name__: operator
    for operator in (
        nms,
        softnms,
        roi_align_forward,
        roi_align_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
    )
}
