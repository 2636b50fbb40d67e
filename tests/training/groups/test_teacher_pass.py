"""What is computed once from a teacher: kept by content, computed again where it is damaged, stopped without loss."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers.teacher_passes import UNIT, some_digits, teacher_pass_of
from torch import Tensor

from benchmarks.common.weights import to_bytes
from benchmarks.tasks.images import ImageData
from benchmarks.training.failures import Interrupted
from kd_methods.analysis import subclasses


@pytest.fixture(scope="module")
def data() -> ImageData:
    return some_digits()


def test_computed_once_and_kept_by_content(data: ImageData, tmp_path: Path):
    asked: list[str] = []

    def compute() -> dict[str, Tensor]:
        asked.append("")
        return {"value": torch.randn(3)}

    first = teacher_pass_of(data, tmp_path).stored("numbers 1", {"k": 1}, compute)["value"]
    torch.manual_seed(99)  # the global generators do not matter, and are left alone
    before = torch.get_rng_state()
    again = teacher_pass_of(data, tmp_path)
    assert torch.equal(again.stored("numbers 1", {"k": 1}, compute)["value"], first) and len(asked) == 1
    torch.manual_seed(99)
    other = again.stored("numbers 1", {"k": 2}, compute)["value"]
    assert torch.equal(other, first) and len(asked) == 2 and torch.equal(torch.get_rng_state(), before)
    teacher_pass_of(data, tmp_path, seed=1).stored("numbers 1", {"k": 1}, compute)
    assert len(asked) == 3


def test_who_asks_while_another_computes_waits_for_it(data: ImageData, tmp_path: Path):
    asked: list[str] = []

    def compute() -> dict[str, Tensor]:
        asked.append("")
        time.sleep(0.5)
        return {"value": torch.ones(3)}

    def ask(_: int) -> Tensor:
        return teacher_pass_of(data, tmp_path).stored("numbers 1", {}, compute)["value"]

    with torch.random.fork_rng(), ThreadPoolExecutor(3) as several:
        assert all(torch.equal(value, torch.ones(3)) for value in several.map(ask, range(3)))
    assert len(asked) == 1


@pytest.mark.parametrize("how", ["half", "bit", "list", "numbers"])
def test_a_damaged_file_is_computed_again(data: ImageData, tmp_path: Path, how: str):
    said: list[str] = []
    teacher_pass = teacher_pass_of(data, tmp_path, say=said.append)
    teacher_pass.stored("numbers 1", {}, lambda: {"value": torch.ones(2)})
    (file,) = tmp_path.glob("*.pt")
    content = file.read_bytes()
    place = content.index(torch.ones(2).numpy().tobytes())
    file.write_bytes({
        "half": content[:50],
        "bit": content[:place] + b"\1" + content[place + 1 :],
        "list": to_bytes([torch.ones(2)]),
        "numbers": to_bytes({"value": 2}),
    }[how])  # fmt: skip
    assert teacher_pass.stored("numbers 1", {}, lambda: {"value": torch.ones(2)})["value"].sum() == 2
    assert any("computing it again" in line for line in said)


def test_stopping_loses_only_what_was_being_computed(data: ImageData, tmp_path: Path):
    """Each part is kept as soon as it is there; asking for it again costs no pass."""
    passes: list[int] = []

    def stopping() -> bool:
        passes.append(1)
        return len(passes) > 4

    with pytest.raises(Interrupted):
        subclasses.find(teacher_pass_of(data, tmp_path, stopping=stopping), UNIT, 1, 10, 4, 9)
    times = {file.stat().st_mtime_ns for file in tmp_path.glob("*.pt")}
    assert len(times) == 1  # the discriminants
    whole = subclasses.find(teacher_pass_of(data, tmp_path), UNIT, 1, 10, 4, 9)
    assert times <= {file.stat().st_mtime_ns for file in tmp_path.glob("*.pt")}
    anew = subclasses.find(teacher_pass_of(data, tmp_path / "anew"), UNIT, 1, 10, 4, 9)
    assert all(torch.equal(*pair) for pair in zip(vars(whole).values(), vars(anew).values(), strict=True))
