"""What methods start from and what their first step gives, as recorded: parameters are made in one order, by name.

A new method, or one whose version was raised, is recorded by ``PYTHONPATH=.:tests .venv/bin/python
tests/methods/test_first_steps.py NAME ...``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.method_setup import NAMES, Setup
from torch import Tensor

FILE = Path(__file__).parents[1] / "goldens" / "first_steps.json"
RECORDED: dict[str, Any] = json.loads(FILE.read_text())


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


def test_every_method_is_recorded() -> None:
    assert set(NAMES) <= set(RECORDED)


if __name__ == "__main__":
    torch.set_num_threads(1)
    RECORDED |= {name: first_step(name) for name in sys.argv[1:]}
    lines = (f" {json.dumps(name)}: {json.dumps(step)}" for name, step in RECORDED.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
