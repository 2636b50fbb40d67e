"""What a method's card says of batches that processes share: losses of parts add up to those of the whole batch."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.method_setup import CASES, NAMES, Setup, each_case
from torch import Tensor, nn

from kd_methods import registry
from kd_methods.contract import NO_OUTPUTS

PARTS = (torch.arange(2), torch.arange(2, 6))


def frozen(setup: Setup) -> Setup:
    """In fp64, with batch-norms that use their running statistics."""
    setup = copy.deepcopy(setup)
    networks = [network for network in setup.method._networks if network is not None]
    for module in dict.fromkeys([setup.method, setup.student, setup.plain, *networks]):
        for child in module.double().modules():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                child.eval()
    if not setup.text:
        assert setup.batch.second is not None
        setup.batch = replace(setup.batch, inputs=setup.batch.inputs.double(), second=setup.batch.second.double())
    return setup


def terms(setup: Setup, rows: Tensor | None = None) -> dict[str, Tensor]:
    """The terms of the batch, or of some of its samples, with the same draws."""
    by_name = {}
    setup = copy.deepcopy(setup)
    for prefix, needs, losses, runs in setup.all_phases():
        student, teacher = setup.outputs(needs)
        student, batch = student if runs else NO_OUTPUTS, setup.batch
        if rows is not None:
            student, teacher = (outputs.each(lambda tensor: tensor[rows]) for outputs in (student, teacher))
            batch = batch.rows(rows)
        torch.manual_seed(11)
        every = losses(student, teacher, batch, setup.progress).terms()
        by_name |= {f"{prefix}{name}": term.detach() for name, term in every.items()}
    return by_name


def apart(setup: Setup) -> list[str]:
    """The terms that are other ones in parts."""
    setup = frozen(setup)
    whole, parts = terms(setup), [terms(setup, rows) for rows in PARTS]
    size = sum(map(len, PARTS))
    sums = {name: sum(part[name] * len(rows) for part, rows in zip(parts, PARTS, strict=True)) / size for name in whole}
    return [name for name, term in whole.items() if not torch.allclose(sums[name], term, rtol=1e-9, atol=1e-12)]


@each_case
def test_losses_of_each_processs_own_samples_add_up(name: str, values: dict[str, Any]) -> None:
    setup = Setup(name, values)
    if setup.method.gathers():
        pytest.skip("its losses are those of all samples")
    assert not apart(setup)


GATHER = [name for name, values in CASES if name in NAMES and not values and registry.card(name).batch == "global"]


@pytest.mark.parametrize("name", GATHER)
def test_samples_are_gathered_only_where_that_makes_a_difference(name: str) -> None:
    if name == "ofd":
        pytest.skip("only where a pre-activation comes from no batch-norm")
    assert apart(Setup(name))
