"""Random streams derived from (seed, purpose), and keeping one cell's stream apart from another's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
        self.device = device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive(seed, "stream"))
            self.state = self._read()

    def _read(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def _write(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the global generators are this stream's; outside they are as they were."""
        outer = self._read()
        self._write(self.state)
        try:
            yield
        finally:
            self.state = self._read()
            self._write(outer)
