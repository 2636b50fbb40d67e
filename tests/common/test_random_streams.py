"""Random streams: seeds by purpose, apart from the global generator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.common.seeding import Stream, derive

CPU = torch.device("cpu")


def test_seeds_of_different_purposes_differ():
    seeds = [
        derive(seed, *purpose)
        for seed in range(5)
        for purpose in (
            ("student",), ("method",), ("stream",), *(("order", e) for e in (1, 2, 11)),
            *(("augmentation", e, s) for e in (1, 2, 11) for s in (1, 2, 11)),
        )
    ]  # fmt: skip
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_stream_is_apart_from_the_global_generator():
    torch.manual_seed(1)
    outside = torch.rand(5)
    torch.manual_seed(1)
    one, other = Stream(7, CPU), Stream(7, CPU)
    drawn: dict[str, list[Tensor]] = {"one": [], "other": [], "outside": []}
    for i in range(5):
        with one.active():
            drawn["one"].append(torch.rand(1))
        torch.rand(0)
        with other.active():
            drawn["other"].append(torch.rand(1))
        drawn["outside"].append(torch.rand(1))
        if i == 2:  # as a checkpoint does
            saved = [state.clone() for state in one.state]
            one = Stream(99, CPU)
            one.state = saved
    assert torch.equal(torch.cat(drawn["one"]), torch.cat(drawn["other"]))
    assert torch.equal(torch.cat(drawn["outside"]), outside)
    assert len(torch.cat(drawn["one"]).unique()) == 5
    with Stream(8, CPU).active():
        assert not torch.equal(torch.rand(1), drawn["one"][0])


def test_a_stream_is_put_away_after_an_error():
    stream = Stream(7, CPU)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), stream.active():
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(before, torch.get_rng_state())
