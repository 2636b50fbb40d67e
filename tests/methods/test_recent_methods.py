"""What goes wrong easily in the methods since 2020: schedules, what is computed before training, variants apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import kd_methods
from benchmarks.networks import build_network
from kd_methods.analysis import class_distances as distances
from kd_methods.contract import DataInfo, Outputs, Progress, TeacherPass
from kd_methods.errors import UserError


class Given(TeacherPass):
    """Features that are given instead of computed; (N, ...) each."""

    def __init__(self, labels: Tensor, **units: Tensor) -> None:
        self.labels, self.units, self.passes = labels, units, 0

    def outputs(self, units: Iterable[str], indices: Tensor | None = None) -> Iterator[tuple[Outputs, Tensor]]:
        self.passes += 1
        chosen = torch.arange(len(self.labels)) if indices is None else indices
        for part in chosen.split(3):
            kept = {unit: self.units[unit][part] for unit in units}
            yield Outputs(self.units["logits"][part], kept, None), self.labels[part]  # type: ignore[arg-type]

    def stored(self, what: str, settings: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]) -> Any:
        return compute()


@pytest.fixture
def given() -> Given:
    draws = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 4, 4, 0, 1, 2, 4, 0])  # none of class 3, four of class 0
    return Given(labels, maps=torch.randn(13, 3, 2, 2, generator=draws), logits=torch.randn(13, 5, generator=draws))


@pytest.mark.parametrize("unit", ["maps", None])
@pytest.mark.parametrize("memory", [2**30, 1], ids=["at once", "class by class"])
def test_distances_between_classes(given: Given, unit: str | None, memory: int, monkeypatch: pytest.MonkeyPatch):
    """1 - linear CKA of the first three images of each class, in order; position by position on maps."""
    monkeypatch.setattr(distances, "IN_MEMORY", memory)
    found = distances.class_distances(given, 5, unit)
    x = given.units[unit or "logits"].double()
    if unit:
        x = x.permute(0, 2, 3, 1)
    for a in range(5):
        for b in range(5):
            if 3 in (a, b) or a == b:
                expected = float(a != b)
            else:
                pair = [x[given.labels == k][:3].flatten(0, -2) for k in (a, b)]
                u, v = (features - features.mean(0) for features in pair)
                expected = 1 - ((u.t() @ v).norm() ** 2 / ((u.t() @ u).norm() * (v.t() @ v).norm())).item()
            assert found[a, b].item() == pytest.approx(expected, abs=1e-5)
    assert given.passes == (2 if memory > 1 else 11), "one pass for a class's size; then each group once, and each pair"


def test_what_wkd_l_prepares(given: Given):
    teacher, student = (build_network("resnet8", 5, (3, 16, 16)) for _ in range(2))
    unit = teacher.layout.stages[-1]
    given.units[unit] = given.units["maps"]
    info = DataInfo(13, 5, given.labels)
    for values in ({"sharpness": 2.0}, {"features": "logits"}):
        method: Any = kd_methods.build("wkd_l", student, teacher, info, **values)
        assert torch.equal(method.cost, 1 - torch.eye(5)), "what losses can be computed with until then"
        method.prepare(given)
        wanted = distances.class_distances(given, 5, None if "features" in values else unit)
        assert torch.allclose(method.cost, 1 - torch.exp(-method.settings.sharpness * wanted))
        assert "cost" not in method.state_dict(), "it is computed again, or comes from the store"


def test_the_cosine_of_a_schedule():
    assert [Progress(epoch, 240).cosine(150.0) for epoch in (1, 150, 195, 240)] == pytest.approx([1, 1, 0.5, 0])
    assert Progress(50, 100).cosine(0.0) == pytest.approx(0.5)
    assert Progress(240, 240).cosine(240.0) == 1.0
    # In a shortened run an epoch stands for many, and has the mean of their factors.
    assert sum(Progress(epoch, 240, 30).cosine(150.0) for epoch in range(30, 241, 30)) == pytest.approx(
        sum(Progress(epoch, 240).cosine(150.0) for epoch in range(1, 241)) / 30
    )


@pytest.mark.parametrize(("name", "grid", "fits"), [("resnet8", 4, False), ("resnet8", 3, True), ("vgg8", 2, False)])
def test_wkd_f_refuses_cells_of_one_position(name: str, grid: int, fits: bool):
    networks = [build_network(name, 5, (3, 16, 16)) for _ in range(2)]  # last stages of 4x4 and 2x2
    if fits:
        kd_methods.build("wkd_f", *networks, DataInfo(10, 5), grid=grid)
        return
    with pytest.raises(UserError, match="two positions in each"):
        kd_methods.build("wkd_f", *networks, DataInfo(10, 5), grid=grid)
