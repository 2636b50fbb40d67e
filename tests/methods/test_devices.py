"""A step of every method on a GPU, of which only the shapes are needed: what it makes is there, and nobody waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.devices import GPU, FakeGPU, Waits
from helpers.method_setup import CASES, NAMES, TEXT_PAIR, Setup

import kd_methods
from kd_methods.errors import UserError

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14):
    pytest.skip("an earlier torch, such as 2.6, aborts on a GPU that is only made up", allow_module_level=True)

DEFAULTS: list[Any] = [(name, values, None) for name, values in CASES if not values or name not in NAMES]
OTHERS: list[Any] = [
    *((name, values, None) for name, values in CASES if values),
    *((name, {}, ("vit", "vit")) for name in NAMES if kd_methods.card(name).modality != "text"),
    *((name, {}, TEXT_PAIR) for name in [*NAMES, "kd@ls"] if kd_methods.card(name).modality == "any"),
    ("block_kd", {"sample_stones": 1}, TEXT_PAIR),
]
STEPS = [*DEFAULTS, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)]
IDS = [f"{name}{values or ''}{'-' + pair[0] if pair else ''}" for name, values, pair in (*DEFAULTS, *OTHERS)]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(("name", "values", "pair"), STEPS, ids=IDS)
def test_a_step_stays_on_the_device_and_waits_only_where_the_card_says_why(
    name: str, values: dict[str, Any], pair: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        setup = Setup(name, values, pair)
    except UserError as error:
        pytest.skip(str(error))
    if setup.text:  # in each pass of an encoder, transformers looks whether there is padding at all
        monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *tensors: True)
    fake = FakeGPU()
    moved = fake.moved(setup)
    with fake:
        losses = moved.step()
    assert {term.device for term in losses.terms().values()} == {GPU}
    with Waits() as backward:
        setup.step().total().backward()
    waits = +(fake.waits + backward.counts)
    assert bool(waits) == bool(kd_methods.card(name).waits), dict(waits)


def test_what_lies_on_another_device_is_found() -> None:
    fake = FakeGPU()
    there = fake.tensor(torch.ones(3))
    with fake:
        assert (there * 2.0 + torch.tensor(1.0)).device == GPU  # a scalar of the CPU, as torch allows
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
    assert not +fake.waits


def test_what_the_host_waits_for_is_counted() -> None:
    fake = FakeGPU()
    there = fake.tensor(torch.ones(3))
    with fake:
        assert there.sum().item() == 1 and there[there > 0].shape == (3,)
        torch.tensor([1, 2], device=there.device)
        there.cpu()
        assert torch.arange(3)[torch.ones(3, dtype=torch.bool)].tolist() == [0, 1, 2]
    assert +fake.waits == {"_local_scalar_dense": 1, "index": 1, "a copy between devices": 2}
    x = torch.ones(3, requires_grad=True)
    with Waits() as counted:
        x[x > 0].sum().item()
    assert +counted.counts == {"index": 1, "_local_scalar_dense": 1}
