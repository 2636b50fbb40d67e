"""Processes that share a batch: their first step's gradients, sums and banks are those of one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.shared_steps import work
from helpers.training_bench import ALL, COMPOSED_FOR_IMAGES, FOR_TRANSFORMERS, PROTOCOL, Case, TrainingBench, tiny_data
from torch import Tensor

import kd_methods
from benchmarks.common.process.children import Child, Ended, received
from benchmarks.training.optimizers import parts_of_batch
from benchmarks.training.replicas.replica import Replica
from kd_methods.errors import UserError

GATHERED: list[Case] = [
    *(("feature_only", {"distance": "gram"}), ("ofd", {"teacher_bn": "batch"})),
    ("fcfd", {"teacher_bn": "eval"}),
    *COMPOSED_FOR_IMAGES,
]
TEXTS: list[Case] = [
    (name, {})
    for name in kd_methods.available()
    if kd_methods.card(name).modality in ("text", "any") and name not in FOR_TRANSFORMERS
]


def answers(cases: list[Case], count: int, folder: Path, *how: Any) -> dict[str, list[dict[str, Tensor]]]:
    """What the first of ``count`` processes tells."""
    rendezvous = folder / f"rendezvous-{count}"
    children = [Child(work, cases, (rank, count, rendezvous), *how) for rank in range(count)]
    by_rank: dict[str, Any] = {}
    try:
        left = list(children)
        while left:
            for child, message in received(left, None):
                if isinstance(message, Ended):
                    assert not child.process.exitcode, message.how
                    left.remove(child)
                else:
                    by_rank[message[0]] = [
                        {k: torch.from_numpy(v) for k, v in tensors.items()} for tensors in message[1:]
                    ]
    finally:
        for child in children:
            child.end()
    return by_rank


def check(cases: list[Case], folder: Path, kind: str = "images", sync: bool = False, count: int = 2) -> None:
    one, shared = answers(cases, 1, folder, kind, sync), answers(cases, count, folder, kind, sync)
    assert one.keys() == shared.keys() and len(one) >= len(cases)
    apart = {label: distance(one[label], shared[label]) for label in one}
    assert not {label: value for label, value in apart.items() if not value <= 1e-9}


def distance(left: Sequence[dict[str, Tensor]], right: Sequence[dict[str, Tensor]]) -> float:
    """The largest difference of gradients, or of what was kept, relative to each tensor's largest value.

    Where that is nothing but rounding (of what stands before a normalisation), relative to 1e-5 of the others'.
    """
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        sizes = {key: float(value.abs().max()) if value.numel() else 0.0 for key, value in a.items()}
        least = 1e-5 * max(sizes.values(), default=0.0)
        for key, value in a.items():
            if value.numel():
                worst = max(worst, float((value - b[key]).abs().max()) / max(sizes[key], least, 1e-300))
    return worst


FEW: list[Case] = [
    *(("kd", {}), ("fitnet.paper", {}), ("crd", {}), ("mgd", {}), ("rkd", {}), ("mlld", {})),
    ("block_kd", {"sample_stones": 2}),
]
"""Means over samples, a first phase, banks, draws of each sample, relations, two views, draws of the whole batch."""


def test_one_method_of_each_kind(tmp_path: Path) -> None:
    check(FEW, tmp_path)


@pytest.mark.slow
def test_every_method_for_images(tmp_path: Path) -> None:
    check([*ALL, *GATHERED], tmp_path)


WITH_NORMS: list[Case] = [("student", {}), ("kd", {}), ("srrl", {}), ("reviewkd", {}), ("rkd", {})]
"""Without a teacher and with one; batch norms of the method's own, of vectors and of maps; relations of all samples."""


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_synchronised_batch_statistics_are_those_of_one_process(tmp_path: Path, count: int) -> None:
    check(WITH_NORMS, tmp_path, sync=True, count=count)


@pytest.mark.slow
def test_every_method_with_synchronised_batch_statistics(tmp_path: Path) -> None:
    check([*ALL, *GATHERED], tmp_path, sync=True)


@pytest.mark.slow
def test_every_method_for_texts(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra [text] is not installed")
    check(TEXTS, tmp_path, "text")


@pytest.mark.slow
def test_an_update_by_two_kinds_of_gradients(tmp_path: Path) -> None:
    check([("student", {}), ("kd", {}), ("rkd", {})], tmp_path, "two momenta")


def test_every_method_for_vision_transformers(tmp_path: Path) -> None:
    check([(name, {}) for name in FOR_TRANSFORMERS], tmp_path, "transformers")


def test_no_method_is_left_out() -> None:
    """Those for detectors: mmengine shares their batches by torch's DistributedDataParallel."""
    checked = {name for name, _ in [*ALL, *GATHERED, *TEXTS]} | set(FOR_TRANSFORMERS)
    every = {name for name in kd_methods.available() if kd_methods.card(name).modality != "detection"}
    assert every <= checked


def test_differences_are_found() -> None:
    assert distance([{"a": torch.ones(2)}], [{"a": torch.tensor([1.0, 1.01])}]) > 1e-3
    rounded = [{"a": torch.ones(2), "b": torch.tensor(value)} for value in (1e-17, -1e-17)]
    assert distance(rounded[:1], rounded[1:]) < 1e-9


def test_a_cell_of_two_processes_is_not_trained_by_one(tmp_path: Path) -> None:
    shared = PROTOCOL.model_copy(update={"world_size": 2})
    bench = TrainingBench(tmp_path, tiny_data(protocol=shared), shared)
    with pytest.raises(UserError, match="2 processes share the batches cannot be trained by 1") as error:
        bench.run(bench.cells([("kd", {})]))
    assert "\n" not in str(error.value)


def test_a_batch_too_small_to_be_shared_is_left_out() -> None:
    assert list(parts_of_batch(1, 1, Replica(0, 2))) == []
    sizes = [[part.lengths for part in parts_of_batch(9, 2, Replica(rank, 2))] for rank in range(2)]
    assert sizes == [[[2, 2], [2, 3]]] * 2
    assert [part.least for part in parts_of_batch(7, 2, Replica(0, 2))] == [3], "no part has one sample alone"
    assert sum(part.share for rank in range(2) for part in parts_of_batch(7, 2, Replica(rank, 2))) == pytest.approx(1)
