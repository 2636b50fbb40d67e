"""The real data sets, of which a machine may have some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

RealData = Callable[..., Path]
"""The fixture ``real_data``: places of what a test needs, each a path or several of which one will do, to the folder
below which all of them are. The test is skipped where one is absent."""

CIFAR100 = ("cifar-100-python", "cifar100/cifar-100-python")
VOCABULARY = ("vocab.txt", "bert/vocab.txt")


def below(root: Path) -> RealData:
    def folder(*needed: str | tuple[str, ...]) -> Path:
        for places in needed:
            choice = (places,) if isinstance(places, str) else places
            if not any((root / place).exists() for place in choice):
                pytest.skip(f"no {' or '.join(choice)} in {root}: set KDBENCH_DATA to a folder that has it")
        return root

    return folder
