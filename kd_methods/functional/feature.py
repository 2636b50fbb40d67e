"""Losses on feature maps (B, C, H, W)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision, unit


@full_precision
def hint(student_map: Tensor, teacher_map: Tensor, *, both: bool = False) -> Tensor:
    """FitNet's hint term: mean squared difference of the regressed student map and the teacher's.

    Args:
        student_map, teacher_map: (B, C, H, W) of equal shape; the student's has been through a regressor.
        both: the teacher's has been through a trained part too, which gets a gradient.

    Source: Romero et al. 2015, equation 3, as a mean over all elements (RepDistiller ``distiller_zoo/FitNet.py``).
    """
    return F.mse_loss(student_map, teacher_map if both else teacher_map.detach())


@full_precision
def told_apart(judgement: Tensor, real: bool) -> Tensor:
    """What a discriminator has to pay for its judgement, cross-entropy, mean over the batch.

    Args:
        judgement: (B, 1) logits of "these are the teacher's features"; none is constant.
        real: whether they are taken for the teacher's.

    Source: Belagiannis et al. 2018 (ANC), in the non-saturating form.
    """
    return F.binary_cross_entropy_with_logits(judgement, torch.full_like(judgement, float(real)))


@full_precision
def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of the squared differences over the batch size.

    Args:
        student, teacher: (B, ...) of equal shape.

    Source: Yang et al. 2022 (ViTKD), equation 2, in the form of yzd-v/cls_KD ``mmcls/models/dis_losses/vitkd.py``
    @1e5d48f.
    """
    return (student - teacher.detach()).square().sum() / len(student)


@full_precision
def attention_transfer(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], *, p: int = 2) -> Tensor:
    """Sum over stages of the mean squared difference of normalised spatial attention maps.

    The attention map of F is mean_c |F|^p as a vector over positions, divided by its 2-norm. Where sizes differ, the
    larger feature map is average-pooled to the smaller one first.

    Args:
        student_maps, teacher_maps: one (B, C, H, W) per stage; channels may differ.
        p: power of the activations.

    Source: Zagoruyko & Komodakis 2017, equation 2, in the form of the authors' code. Agrees with goldens ``at_p2``,
    ``at_p2_resize``.
    """
    pairs = [same_size(s, t.detach()) for s, t in zip(student_maps, teacher_maps, strict=True)]
    return torch.stack([F.mse_loss(_attention(s, p), _attention(t, p)) for s, t in pairs]).sum()


@full_precision
def attention_distance(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], *, p: int = 2) -> Tensor:
    """Sum over stages of the 2-norm of the attention maps' difference over 2 H W, averaged over samples.

    Args:
        student_maps, teacher_maps: one (B, C, H, W) per stage; channels may differ.
        p: power of the activations.

    Source: Zagoruyko & Komodakis 2017, equation 2, and its weight but for the factor 10^3.
    """
    terms = []
    for s, t in zip(student_maps, teacher_maps, strict=True):
        s, t = (_attention(x, p) for x in same_size(s, t.detach()))
        terms.append(torch.linalg.vector_norm(s - t, dim=1).mean() / (2 * s.shape[1]))
    return torch.stack(terms).sum()


@full_precision
def nst(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Neuron selectivity transfer: sum over stages of MMD² between the normalised channel maps, kernel <a, b>².

    Where sizes differ, the larger feature map is average-pooled to the smaller one first.

    Args:
        student_maps, teacher_maps: one (B, C, H, W) per stage; channels may differ.

    Source: Huang & Wang 2017, equation 6 with the polynomial kernel (d 2, c 0). Agrees with golden ``nst``. Only
    (B, C, C) Gram matrices are formed; the reference forms the products of all pairs of maps.
    """
    terms = []
    for s, t in zip(student_maps, teacher_maps, strict=True):
        s, t = same_size(s, t.detach())
        s, t = unit(s.flatten(2)), unit(t.flatten(2))
        terms.append(_kernel(s, s) + _kernel(t, t) - 2 * _kernel(s, t))
    return torch.stack(terms).sum()


@full_precision
def kdsvd(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], *, k: int = 1) -> Tensor:
    """Squared differences of RBF relations between singular vectors of consecutive stages, summed, over the batch size.

    A map is read as a (C H, W) matrix and gives its k leading right singular vectors (k + 3 for the student, of which
    each teacher vector picks the one nearest to it up to sign), weighted by the teacher's normalised singular values.
    Where sizes differ, the larger feature map is average-pooled to the smaller one first.

    Args:
        student_maps, teacher_maps: two or more (B, C, H, W), in order of depth; channels may differ.
        k: number of singular vectors.

    Source: Lee et al. 2018 in the form of mdistiller ``distillers/KDSVD.py``. Agrees with golden ``kdsvd``. As there,
    the sign of a teacher's vector is whatever the SVD returns, and the relations depend on it. Where singular values
    coincide, the derivative of their vectors is taken as zero (the reference gives NaN).
    """
    vectors = []
    for s, t in zip(student_maps, teacher_maps, strict=True):
        s, t = same_size(s, t.detach())
        _, values, rows = torch.linalg.svd(t.flatten(1, 2), full_matrices=False)
        v_t, strength = rows[:, :k].transpose(1, 2), unit(values[:, :k])
        v_s = _right_singular(s, k + 3)
        cosines = v_s.detach().transpose(1, 2) @ v_t
        nearest = cosines.abs().argmax(1, keepdim=True)
        v_s = v_s.gather(2, nearest.expand(-1, v_s.shape[1], -1)) * cosines.gather(1, nearest).sign()
        vectors.append((v_s * strength.unsqueeze(1), v_t * strength.unsqueeze(1)))
    terms = []
    for (s_below, t_below), (s, t) in itertools.pairwise(vectors):
        n = min(t.shape[2], t_below.shape[2])
        relations = [
            torch.exp(-(above[..., :n].unsqueeze(2) - below[..., :n].unsqueeze(1)).pow(2) / 8)
            for above, below in ((s, s_below), (t, t_below))
        ]
        terms.append((relations[0] - relations[1]).pow(2).sum())
    return torch.stack(terms).sum() / len(student_maps[0])


@full_precision
def hierarchical_context(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """ReviewKD's HCL: per map the average of MSE at full size and average-pooled to 4, 2, 1, weighted 1, 1/2, 1/4, ...

    Args:
        student_maps, teacher_maps: one (B, C, H, W) each of equal shape; the student's are fused.

    Source: Chen et al. 2021, in the form of the authors' code. Agrees with golden ``reviewkd_hcl``.
    """
    terms = []
    for s, t in zip(student_maps, teacher_maps, strict=True):
        t = t.detach()
        levels = [F.mse_loss(s, t)]
        for size in (4, 2, 1):
            if size < s.shape[2]:
                levels.append(F.mse_loss(F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)))
        weights = 0.5 ** torch.arange(len(levels), device=s.device, dtype=s.dtype)
        terms.append((torch.stack(levels) * weights).sum() / weights.sum())
    return torch.stack(terms).sum()


@full_precision
def class_activation(
    student_cam: Tensor, teacher_cam: Tensor, *, resolution: int = 2, normalize: bool = True
) -> Tensor:
    """Mean squared difference of the class activation maps, average-pooled to ``resolution`` and then normalised.

    Args:
        student_cam, teacher_cam: (B, K, H, W), one map per class; sizes may differ.
        resolution: height and width after pooling.
        normalize: divide every class's map by its 2-norm.

    Source: Guo et al. 2023 (CAT-KD), in the form of the authors' code. Agrees with golden ``cat_kd_norm``.
    """
    s, t = (F.adaptive_avg_pool2d(cam, resolution) for cam in (student_cam, teacher_cam.detach()))
    if normalize:
        s, t = (unit(cam.flatten(2)) for cam in (s, t))
    return F.mse_loss(s, t)


@full_precision
def activation_boundary(
    student_preacts: Sequence[Tensor], teacher_preacts: Sequence[Tensor], *, margin: float = 1.0
) -> Tensor:
    """Squared hinge of the student's pre-activations at the teacher's signs, summed; stage l of L weighs 2^(l-L).

    Args:
        student_preacts, teacher_preacts: one (B, C, H, W) per stage of equal shape; the student's are connected.
        margin: of the hinge.

    Source: Heo et al. 2019, equation 4, with the factor 3 / (1000 B) of RepDistiller. Agrees with golden ``ab``.
    """
    terms = []
    for i, (s, t) in enumerate(zip(student_preacts, teacher_preacts, strict=True), 1 - len(student_preacts)):
        sign = torch.where(t.detach() > 0, 1.0, -1.0)
        terms.append(2.0**i * F.relu(margin - sign * s).pow(2).sum())
    return torch.stack(terms).sum() * 3 / (1000 * len(student_preacts[0]))


@full_precision
def factor_transfer(student_factor: Tensor, teacher_factor: Tensor, *, p: int = 2) -> Tensor:
    """Mean absolute difference of the normalised spatial maps mean_c f^p.

    Where sizes differ, the larger factor is average-pooled to the smaller one first.

    Args:
        student_factor, teacher_factor: (B, C, H, W); channels may differ.
        p: power of the factors.

    Source: Kim et al. 2018 in the form of RepDistiller ``distiller_zoo/FT.py`` (the paper compares the flattened
    factors). Agrees with golden ``ft_p2_1``.
    """
    s, t = same_size(student_factor, teacher_factor.detach())
    s, t = (unit(x.pow(p).mean(1).flatten(1)) for x in (s, t))
    return F.l1_loss(s, t)


@full_precision
def factor_direction(student_factor: Tensor, teacher_factor: Tensor) -> Tensor:
    """Mean absolute difference of the factors, each flattened and divided by its 2-norm.

    Where sizes differ, the larger factor is average-pooled to the smaller one first.

    Args:
        student_factor, teacher_factor: (B, C, H, W) of equal channels.

    Source: Kim et al. 2018 in the form of the authors' ``Factor-Transfer-pytorch``.
    """
    s, t = same_size(student_factor, teacher_factor.detach())
    return F.l1_loss(unit(s.flatten(1)), unit(t.flatten(1)))


@full_precision
def partial_l2(student_preact: Tensor, teacher_preact: Tensor, margin: Tensor) -> Tensor:
    """Sum of (s - max(t, m))², left out where s <= max(t, m) <= 0, over the batch size.

    Args:
        student_preact, teacher_preact: (B, C, H, W) of equal shape; the student's is connected.
        margin: (C) m, negative.

    Source: Heo et al. 2019 (overhaul) in the form of the authors' ``CIFAR-100/distiller.py``.
    """
    target = torch.maximum(teacher_preact, margin.view(1, -1, 1, 1)).detach()
    active = (student_preact > target) | (teacher_preact > 0)
    return ((student_preact - target).pow(2) * active).sum() / len(student_preact)


@full_precision
def gaussian_nll(mean: Tensor, target: Tensor, theta: Tensor, *, eps: float) -> Tensor:
    """Mean of [(target - mean)² / s + log s] / 2 with s = softplus(theta) + eps, constants left out.

    Args:
        mean, target: (B, C, H, W) of equal shape; the mean is computed from the student's map.
        theta: (C).
        eps: least variance.

    Source: Ahn et al. 2019 in the form of RepDistiller ``distiller_zoo/VID.py``.
    """
    variance = (F.softplus(theta) + eps).view(1, -1, 1, 1)
    return ((mean - target.detach()).pow(2) / variance + variance.log()).mean() / 2


@full_precision
def fsp(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Sum over consecutive stages of the mean squared difference of their channel Gram matrices.

    Args:
        student_maps, teacher_maps: two or more (B, C, H, W), in order of depth; channels must agree.

    Source: Yim et al. 2017, equations 1 and 2, as a mean over all elements (RepDistiller). Agrees with golden ``fsp``.
    """
    flows = [
        [_flow(below, above) for below, above in itertools.pairwise(maps)]
        for maps in (student_maps, [t.detach() for t in teacher_maps])
    ]
    return torch.stack([F.mse_loss(s, t) for s, t in zip(*flows, strict=True)]).sum()


@full_precision
def ickd(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Squared difference of the (C, C) Gram matrices of channels, rows of length 1, summed, over C and the batch size.

    Args:
        student_map, teacher_map: (B, C, H, W) of equal channels, the student's through an embedding; sizes may differ.

    Source: Liu et al. 2021 (ICKD-C) in the form of ADLab-AutoDrive/ICKD ``Cifar100/distiller_zoo/ICKD.py`` @403b8d3;
    the authors' ImageNet code and torchdistill's port of it divide by the batch size once more.
    """
    s, t = (unit(x @ x.transpose(1, 2)) for x in (student_map.flatten(2), teacher_map.detach().flatten(2)))
    return (s - t).square().sum() / (s.shape[1] * s.shape[0])


@full_precision
def appearance_consistency(student_maps: Sequence[Sequence[Tensor]], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of every map of a block from the teacher's there, summed over maps and blocks.

    Those of the last block are compared a second time after a ReLU and global average pooling.

    Args:
        student_maps: for every block of the network any number of (B, C, H, W) that stand for the teacher's map there.
        teacher_maps: one (B, C, H, W) a block.

    Source: Liu et al. 2023 (FCFD), the appearance term of LiuDongyang6/FCFD ``classification/models/meta.py``
    @2aefb7b.
    """
    terms = []
    for block, (maps, t) in enumerate(zip(student_maps, teacher_maps, strict=True), 1):
        t = t.detach()
        for g in maps:
            terms.append(F.mse_loss(g, t))
            if block == len(teacher_maps):
                terms.append(F.mse_loss(F.relu(g).mean((2, 3)), F.relu(t).mean((2, 3))))
    return torch.stack(terms).sum()


def smaller_size(a: Sequence[int], b: Sequence[int]) -> tuple[int, int]:
    """Height and width of the smaller one of two shapes (..., H, W), each for itself."""
    return min(a[-2], b[-2]), min(a[-1], b[-1])


def pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (B, C, H, W) average-pooled to a size, unless it has that."""
    return x if x.shape[-2:] == size else F.adaptive_avg_pool2d(x, size)


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W), the larger one average-pooled to the size of the smaller one, in height and in width."""
    size = smaller_size(a.shape, b.shape)
    return pooled(a, size), pooled(b, size)


def _attention(x: Tensor, p: int) -> Tensor:
    return unit(x.abs().pow(p).mean(1).flatten(1))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.transpose(1, 2)).pow(2).mean()


def _flow(below: Tensor, above: Tensor) -> Tensor:
    below, above = same_size(below, above)
    return above.flatten(2) @ below.flatten(2).transpose(1, 2) / below.flatten(2).shape[2]


def _right_singular(x: Tensor, n: int) -> Tensor:
    """Leading right singular vectors (B, W, n) of (B, C H, W); all W where n is larger.

    From an eigendecomposition of the (W, W) Gram matrix, differentiated by first-order perturbation theory, in which
    pairs of vectors with equal values are left alone.
    """
    kind, x = x.dtype, x.flatten(1, 2).double()
    gram = x.transpose(1, 2) @ x
    values, vectors = torch.linalg.eigh(gram.detach())
    gap = values.unsqueeze(1) - values.unsqueeze(2)
    distinct = gap.abs() > 1e-9 * values[:, -1:, None]
    change = vectors.transpose(1, 2) @ (gram - gram.detach()) @ vectors
    vectors = vectors + vectors @ (change * distinct / gap.masked_fill(~distinct, 1.0))
    return vectors.flip(2)[..., :n].to(kind)
