"""Losses of detection: on the levels of a feature pyramid, on objects and background, on distributions of box edges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision


def object_masks(boxes: Sequence[Tensor], image: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the objects of a batch are on a map, and where none is: weights (B, H, W) of both.

    A position within objects weighs one over the area, in positions, of the smallest of them; those of an image
    without any share one.

    Args:
        boxes: corners (n, 4) of every image's objects, in pixels.
        image: height and width in pixels of the images as they entered the network, padding included.
        size: (H, W) of the map.

    Source: Yang et al. 2022 (FGD), equations 3 to 5, with the rounding of the authors' ``losses/fgd.py``.
    """
    (height, width), (rows, columns) = image, size
    objects = []
    for corners in boxes:
        scale = corners.new_tensor([columns / width, rows / height])
        low, high = (corners[:, :2] * scale).floor(), (corners[:, 2:] * scale).ceil()
        area = (high + 1 - low).prod(1)
        x, y = torch.arange(columns, device=corners.device), torch.arange(rows, device=corners.device)
        across = (x >= low[:, :1]) & (x <= high[:, :1])
        down = (y >= low[:, 1:]) & (y <= high[:, 1:])
        inside = (down[:, :, None] & across[:, None, :]) / area[:, None, None]
        objects.append(inside.amax(0) if len(corners) else corners.new_zeros(rows, columns))
    foreground = torch.stack(objects)
    background = (foreground == 0).to(foreground)
    return foreground, background / background.sum((1, 2), keepdim=True).clamp(min=1)


@full_precision
def focal_features(
    student: Tensor, teacher: Tensor, foreground: Tensor, background: Tensor, *, temperature: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """FGD's focal terms of one level: objects, background, and the attention maps themselves.

    The squared differences are weighted by the teacher's attention over positions and over channels: softmaxes of the
    mean magnitudes, times the number of positions and of channels.

    Args:
        student, teacher: (B, C, H, W).
        foreground, background: (B, H, W) of :func:`object_masks`.
        temperature: of the attention's softmaxes.

    Returns:
        The three terms, sums over a map, means over the batch.

    Source: Yang et al. 2022 (FGD), equations 1, 2 and 6 to 9.
    """
    teacher = teacher.detach()
    places_t, channels_t = _attentions(teacher, temperature)
    places_s, channels_s = _attentions(student, temperature)
    error = (student - teacher).pow(2) * places_t[:, None] * channels_t[:, :, None, None]
    terms = [(error * mask[:, None]).sum() / len(student) for mask in (foreground, background)]
    attention = (places_s - places_t).abs().sum() + (channels_s - channels_t).abs().sum()
    return terms[0], terms[1], attention / len(student)


def _attentions(x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Attention over positions (B, H, W) and over channels (B, C)."""
    size = x.abs()
    batch, channels, height, width = x.shape
    places = F.softmax(size.mean(1).flatten(1) / temperature, 1).view(batch, height, width)
    return height * width * places, channels * F.softmax(size.mean((2, 3)) / temperature, 1)


@full_precision
def channel_wise(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL between the distributions over positions that the softmax makes of every channel, averaged over channels.

    Args:
        student, teacher: (B, C, H, W) of equal shape.
        temperature: T; the term has the factor T^2.

    Source: Shu et al. 2021 (CWD), equations 3 and 4; mmrazor ``models/losses/cwd.py``.
    """
    learner, target = (x.flatten(2).flatten(0, 1) / temperature for x in (student, teacher.detach()))
    divergence = F.kl_div(F.log_softmax(learner, 1), F.log_softmax(target, 1), reduction="sum", log_target=True)
    return temperature**2 * divergence / len(learner)


@full_precision
def pearson(student: Tensor, teacher: Tensor, *, eps: float = 1e-6) -> Tensor:
    """One minus Pearson's correlation of every channel over batch and positions, averaged over channels.

    Computed as half the mean squared difference of maps that are standardised per channel.

    Args:
        student, teacher: (B, C, H, W) of equal shape.
        eps: added to the standard deviations.

    Source: Cao et al. 2022 (PKD), equations 2 and 5; mmrazor ``models/losses/pkd_loss.py``.
    """
    learner, target = (x.transpose(0, 1).flatten(1) for x in (student, teacher.detach()))
    return F.mse_loss(_standardised(learner, eps), _standardised(target, eps)) / 2


def _standardised(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + eps)


def valuable_region(
    anchors: Tensor, counts: Sequence[int], boxes: Tensor, *, candidates: int = 9, share: float = 0.25
) -> Tensor:
    """Places near an object, but not so near that they are positive: the valuable localisation region.

    An anchor belongs to it where its DIoU with an object is below the object's threshold and at least ``share`` of it.
    It counts by its IoU.
    The threshold is ATSS's: mean plus standard deviation of the IoUs of the anchors, so many of every level, whose
    centres are closest to the object's.

    Args:
        anchors: (N, 4) corners, level by level.
        counts: how many of them each level has.
        boxes: (G, 4) corners of an image's objects.
        candidates: how many anchors of a level are considered for the threshold.
        share: where the region ends, as a share of the threshold.

    Returns:
        (N,) the largest IoU with an object in whose region the anchor is, 0 outside.

    Source: Zheng et al. 2022 (LD), algorithm 1; HikariTJU/LD ``core/bbox/assigners/atss_assigner.py``.
    """
    if not len(boxes) or not len(anchors):
        return anchors.new_zeros(len(anchors))
    places, objects = ((corners[:, :2] + corners[:, 2:]) / 2 for corners in (anchors, boxes))
    # No cdist: it is a matrix product, which TF32 makes too coarse to order neighbours.
    near, distances = [], (places[:, None] - objects).square().sum(2).split(list(counts))
    for level, start in zip(distances, torch.tensor([0, *counts]).cumsum(0).tolist(), strict=False):
        near.append(level.topk(min(candidates, len(level)), dim=0, largest=False).indices + start)
    from torchvision.ops import box_iou, distance_box_iou

    overlaps = box_iou(anchors, boxes)
    candidate = overlaps.gather(0, torch.cat(near))
    threshold = candidate.mean(0) + candidate.std(0)
    distance = distance_box_iou(anchors, boxes)
    inside = (distance >= share * threshold) & (distance < threshold)
    return torch.where(inside, overlaps, 0).amax(1)


def near_region(anchors: Tensor, boxes: Tensor, *, share: float = 0.5) -> Tensor:
    """Where an anchor's IoU with an object exceeds a share of the best that any anchor has with it.

    Args:
        anchors: (N, 4) corners.
        boxes: (G, 4) corners of an image's objects.

    Returns:
        (N,) booleans.

    Source: Wang et al. 2019 (FGFI), section 3.1; HikariTJU/LD ``dense_heads/ld_head.py``.
    """
    if not len(boxes) or not len(anchors):
        return torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    from torchvision.ops import box_iou

    overlaps = box_iou(anchors, boxes)
    return (overlaps > share * overlaps.amax(0)).any(1)


@full_precision
def place_classes(student: Tensor, teacher: Tensor, level: Tensor, *, temperature: float = 2.0) -> Tensor:
    """KL between the softmaxes over the class logits of places, averaged over classes and places, summed over levels.

    Args:
        student, teacher: (P, K) logits.
        level: (P,) the level of every place.
        temperature: T; the term has the factor T^2.

    Source: HikariTJU/LD ``dense_heads/ld_head.py``, ``losses/kd_loss.py`` (a detector's sigmoids taken for a softmax).
    """
    divergence = _divergence(student, teacher, temperature)
    means = [divergence[level == number].mean() for number in level.unique()]
    return torch.stack([divergence.sum() * 0, *means]).sum()


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the KL of softmaxes over the last dimension, averaged over it."""
    learner, target = F.log_softmax(student / temperature, -1), F.log_softmax(teacher.detach() / temperature, -1)
    return temperature**2 * F.kl_div(learner, target, reduction="none", log_target=True).mean(-1)


@full_precision
def localization(student: Tensor, teacher: Tensor, weights: Tensor, *, temperature: float = 10.0) -> Tensor:
    """KL between distributions of box edges, averaged over their bins and edges, summed over all boxes by weight.

    Args:
        student, teacher: (P, 4, n) logits of the n bins of every edge of P boxes.
        weights: (P,), how much each box counts.
        temperature: T; the term has the factor T^2.

    Source: Zheng et al. 2022 (LD), equation 4; mmdet ``LDHead`` with ``KnowledgeDistillationKLDivLoss``, which divides
    the losses of boxes by the sum of the weights, and this one not.
    """
    return (_divergence(student, teacher, temperature).mean(1) * weights).sum()


@full_precision
def quality_focal(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, *, positives: float | Tensor, beta: float = 1.0
) -> Tensor:
    """Sum over places and classes of w BCE(sigmoid(s), sigmoid(t)) |sigmoid(s) - sigmoid(t)|^beta, over ``positives``.

    Args:
        student_logits, teacher_logits: (P, K) logits of sigmoids; the gradient runs through both factors.
        weights: (P,) w of every place.
        positives: the number of places that the assigner gave an object.
        beta: exponent of the distance.

    Source: Wang et al. 2024 (CrossKD), its term of classes, in the form of jbwang1997/CrossKD
    ``losses/kd_loss.py`` @87e156a.
    """
    target = teacher_logits.detach().sigmoid()
    entropy = F.binary_cross_entropy_with_logits(student_logits, target, reduction="none")
    distance = (student_logits.sigmoid() - target).abs().pow(beta)
    return ((entropy * distance).sum(1) * weights.detach()).sum() / positives


@full_precision
def matched_statistics(student_map: Tensor, teacher_map: Tensor, *, eps: float = 1e-6) -> Tensor:
    """The student's map standardised, with mean and deviation of the teacher's: per channel, over batch and positions.

    Args:
        student_map, teacher_map: (B, C, H, W) of equal channels.
        eps: added to the student's deviation; both deviations are unbiased.

    Returns:
        (B, C, H, W).

    Source: Wang et al. 2024 (CrossKD) in the form of jbwang1997/CrossKD ``detectors/crosskd_gfl.py`` @87e156a.
    """
    (mean, deviation), (target_mean, target_deviation) = (
        (x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)) for x in (student_map, teacher_map.detach())
    )
    return (student_map - mean) / (deviation + eps) * target_deviation + target_mean
