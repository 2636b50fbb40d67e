"""What methods start from and what their first step gives, as recorded: parameters are made in one order, by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.method_setup import Setup
from torch import Tensor

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "goldens" / "first_steps.json").read_text())


def first_step(name: str) -> dict[str, Any]:
    """The names of a method's tensors in order, their sums before the first step, and that step's terms."""
    setup = Setup(name)
    state: dict[str, Tensor] = setup.method.state_dict()
    tensors = [tensor.double() for tensor in state.values() if not tensor.isnan().any()]
    names = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    torch.manual_seed(3)
    terms = {key: term.item() for key, term in setup.step().terms().items()}
    sums = [float(sum(x.sum() for x in tensors)), float(sum(x.abs().sum() for x in tensors))]
    return {"names": names, "sums": sums, "terms": terms}


@pytest.mark.parametrize("name", RECORDED)
def test_a_method_starts_and_steps_as_recorded(name: str) -> None:
    """Not bit by bit: other processors round otherwise. Another order of parameters gives entirely other sums."""
    computed, recorded = first_step(name), RECORDED[name]
    assert computed["names"] == recorded["names"]
    assert computed["sums"] == pytest.approx(recorded["sums"], rel=1e-4, abs=1e-4)
    assert computed["terms"].keys() == recorded["terms"].keys()
    for key, value in recorded["terms"].items():
        assert computed["terms"][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
