"""Adapters between features of different shapes, and the hint loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.method_setup import Setup

import kd_methods
from benchmarks.networks import build_network
from kd_methods import functional, registry
from kd_methods.contract import DataInfo
from kd_methods.errors import UserError
from kd_methods.feature._connectors import Connector, ConvReg
from kd_methods.feature.semckd import Embedding
from kd_methods.feature.simkd import Projector
from kd_methods.functional.feature import same_size


def test_hint_has_no_gradient_where_the_regressed_map_agrees():
    t = torch.randn(2, 4, 3, 3)
    s = t.clone().requires_grad_()
    functional.hint(s, t).backward()
    assert s.grad is not None and not s.grad.any()


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((3, 8, 8), (5, 8, 8)), ((3, 8, 8), (5, 4, 4)), ((3, 4, 4), (5, 8, 8)), ((3, 7, 9), (5, 3, 4))],
)
def test_adapters_give_the_teachers_shape(student: tuple, teacher: tuple):
    x = torch.randn(2, *student)
    assert ConvReg(student, teacher)(x).shape[1:] == teacher
    for kind, slope in (("conv1x1", 0.0), ("conv3x3_leaky", 0.1), ("transposed", 0.0)):
        signed, rectified = (Connector(student, teacher, rectify=ends, kind=kind) for ends in (False, True))
        rectified.load_state_dict(signed.state_dict())
        values = signed(x)
        assert values.shape[1:] == teacher and values.min() < 0
        assert torch.allclose(rectified(x), torch.maximum(values, slope * values))
    with pytest.raises(UserError, match="use 'conv1x1'"):
        Connector(student, teacher, rectify=False, kind="identity")


def test_adapters_say_what_they_cannot_do():
    with pytest.raises(UserError, match="2x2 to 8x8"):
        ConvReg((3, 2, 2), (3, 8, 8))
    with pytest.raises(UserError, match="feature maps"):
        Connector((17, 64), (3, 8, 8), rectify=False)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(Connector((3, 4, 4), (3, 4, 4), rectify=False, kind="identity")(x), x)


def test_connector_initialisation():
    weight = Connector((64, 8, 8), (128, 8, 8), rectify=True).body[0].weight
    assert weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)


def test_fitnet_stage_out_of_range():
    with pytest.raises(UserError, match="3 common stages"):
        Setup("fitnet", {"hint_stage": 4})


def test_maps_are_pooled_in_height_and_in_width():
    a, b = torch.randn(2, 3, 8, 16), torch.randn(2, 5, 4, 16)
    pooled, same = same_size(a, b)
    assert pooled.shape == (2, 3, 4, 16) and same is b
    assert torch.equal(pooled, (a[:, :, 0::2] + a[:, :, 1::2]) / 2)
    tall, wide = same_size(torch.randn(2, 3, 8, 2), torch.randn(2, 3, 4, 6))
    assert tall.shape == wide.shape == (2, 3, 4, 2)
    projector = Projector((5, 4, 16), [torch.nn.Identity()])
    assert projector(a).shape == (2, 3, 4, 16) and projector(torch.randn(2, 3, 2, 16)).shape == (2, 3, 2, 16)


def test_products_of_whole_maps_are_beyond_fp16():
    """Rows of a Gram matrix of maps with 65,536 numbers, as SemCKD embeds them under --precision fp16."""
    torch.manual_seed(0)
    embedding, rows = Embedding(4, 2), torch.rand(4, 4) * 1e5
    with torch.autocast("cpu", torch.float16):
        under_fp16 = embedding(rows)
    assert torch.equal(under_fp16, embedding(rows)) and torch.isfinite(under_fp16).all()


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("vid", {"eps": 6.0}, "initial_variance 5.0 has to be larger than eps 6.0"),
        ("diffkd", {"steps": 501}, "diffkd.steps=501: Input should be less than or equal to 500"),
    ],
)
def test_settings_without_a_meaning_are_one_line(method: str, settings: dict, words: str):
    with pytest.raises(UserError, match=words):
        registry.settings(method, settings)


def test_a_large_variance_to_start_from():
    student, teacher = (build_network(name, 10) for name in ("resnet8", "resnet14"))
    method = kd_methods.build("vid", student, teacher, DataInfo(8, 10), initial_variance=800.0)
    assert float(F.softplus(method.thetas[0].detach()).mean()) == pytest.approx(800.0)
