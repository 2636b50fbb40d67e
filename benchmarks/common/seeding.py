"""Random streams derived from (seed, purpose), and keeping one cell's stream apart from another's."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from numpy.random import mtrand


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose: independent of every other purpose's, the same on every machine."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator seeded by :func:`derive`. Draws are made on the CPU, so they do not depend on the device."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def held_out(samples: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions that are trained on and positions held out, ascending; a fixed choice that no seed moves."""
    order = torch.randperm(samples, generator=generator(0, "holdout"))
    return order[count:].sort().values, order[:count].sort().values


class Stream:
    """A cell's own state of torch's global generators (dropout, sampling inside a method)."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device
        self._numpy = np.random.MT19937()
        with seeded(device, seed, "stream"):
            self.state = _read(device)

    @contextmanager
    def active(self, *place: object) -> Iterator[None]:
        """Inside, torch's global generators are this stream's; outside they are as they were.

        Python's and numpy's begin anew at every ``place`` of the stream, so they have no state to be saved.
        """
        outer = _read(self.device)
        _write(self.device, self.state)
        try:
            with _others_seeded(derive(self.seed, "stream", *place), self._numpy):
                yield
        finally:
            self.state = _read(self.device)
            _write(self.device, outer)

    def of_process(self, rank: int, *place: object) -> AbstractContextManager[None]:
        """Inside :meth:`active`, where each of a cell's processes draws for itself."""
        return nullcontext()


class SharedStream(Stream):
    """The stream of a cell that several processes train.

    It begins anew at every place: so all of them draw the same, whatever one of them has drawn elsewhere.
    """

    @contextmanager
    def active(self, *place: object) -> Iterator[None]:
        with seeded(self.device, self.seed, "stream", *place):
            yield

    def of_process(self, rank: int, *place: object) -> AbstractContextManager[None]:
        return seeded(self.device, self.seed, "process", rank, *place)


def seed_all(seed: int) -> None:
    """Let torch's, Python's and numpy's global generators begin from a seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def seeded(device: torch.device, seed: int, *purpose: object) -> Iterator[None]:
    """Inside, torch's, Python's and numpy's global generators begin from a purpose; outside they are as they were."""
    start, outer = derive(seed, *purpose), _read(device)
    torch.manual_seed(start)
    try:
        with _others_seeded(start, np.random.MT19937()):
            yield
    finally:
        _write(device, outer)


@contextmanager
def _others_seeded(seed: int, generator: np.random.MT19937) -> Iterator[None]:
    # Of numpy the generator is exchanged: to read and write its state takes ten times as long, and so does making one.
    python, numpy = random.getstate(), mtrand.get_bit_generator()
    random.seed(seed)
    mtrand.set_bit_generator(generator)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        mtrand.set_bit_generator(numpy)


def _read(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _write(device: torch.device, states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
