"""Adapters between features of different shapes, and the hint loss."""

from __future__ import annotations

import pytest
import torch
from helpers.method_setup import Setup

from kd_methods import functional
from kd_methods.errors import UserError
from kd_methods.feature._connectors import Connector, ConvReg


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
