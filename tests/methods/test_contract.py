"""The contract between methods and whoever trains by them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import nn

import kd_methods
from kd_methods import contract, registry
from kd_methods.contract import (
    NO_OUTPUTS,
    Batch,
    Card,
    DataInfo,
    Losses,
    Method,
    MethodSettings,
    Network,
    Outputs,
    Progress,
    TeacherlessMethod,
)
from kd_methods.errors import UserError
from kd_methods.views import Architecture, Chain, NetworkView

INFO = DataInfo(num_samples=4, num_classes=3)


class Small(Architecture):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def chain(self) -> Chain:
        units = (("conv", self.conv), ("pool", nn.Sequential(self.pool, nn.Flatten())), ("fc", self.fc))
        return Chain(units, contract.Layout("conv", ("conv",), ("conv",), ("conv",), "conv", "pool"))


def small() -> Network:
    return NetworkView(Small(), Small.chain, (3, 8, 8))  # type: ignore[arg-type]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Registers for the length of a test."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    return kd_methods.register


def test_everything_public_is_in_all() -> None:
    names = {name for name, value in vars(contract).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert names == set(contract.__all__)


@pytest.mark.parametrize("name", kd_methods.available())
def test_methods_are_light(name: str) -> None:
    """None repeats the constructor, and none asks whether there is a teacher."""
    cls = registry.get(name)
    assert cls.__init__ is Method.__init__
    assert inspect.signature(cls.losses).parameters["teacher"].annotation == "Outputs"
    assert cls.needs_teacher == (not issubclass(cls, TeacherlessMethod))


@pytest.mark.parametrize(
    "field",
    ["logits", "stem", "stages", "preacts", "blocks", "last_map", "pooled", "queries", "keys", "values", "second"],
)
def test_nothing_can_be_read_of_a_pass_that_was_not_made(field: str) -> None:
    with pytest.raises(LookupError, match="declare"):
        getattr(NO_OUTPUTS, field)
    assert NO_OUTPUTS.tensors() == ()


class Settings(MethodSettings):
    weight: float = Field(2.0, ge=0, description="a weight")


class Scaled(Method[Settings]):
    card = Card(name="test_scaled", version=1, family="logit", title="Scaled")

    def setup(self) -> None:
        assert self.student.shapes("pooled") == self.teacher.shapes("pooled") and self.info.num_classes == 3
        self.scale = nn.Parameter(torch.tensor(self.settings.weight))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        return Losses(distill={"scaled": self.scale * (student.logits - teacher.logits).square().mean()})


def test_settings_are_those_in_the_brackets(register: Callable[[Any], Any]) -> None:
    class Narrower(Settings):
        weight: float = 3.0

    class Variant(Scaled):
        Settings = Narrower

    class Nested(Method):
        class Settings(MethodSettings):
            other: int = 1

    class Without(Method):
        pass

    classes = [cls.Settings for cls in (Scaled, Variant, Nested, Without)]
    assert classes == [Settings, Narrower, Nested.Settings, MethodSettings]
    register(Scaled)
    assert kd_methods.settings("test_scaled", {"weight": 5}).weight == 5.0
    assert registry.get("test_scaled").Settings is Settings


def test_networks_are_at_hand_and_no_part_of_the_method(register: Callable[[Any], Any]) -> None:
    register(Scaled)
    student, teacher = small(), small()
    method = kd_methods.build("test_scaled", student, teacher, INFO)
    assert method.student is student and method.teacher is teacher
    assert list(method.state_dict()) == ["scale"] and len(list(method.parameters())) == 1
    with pytest.raises(UserError, match="needs a teacher"):
        kd_methods.build("test_scaled", student, None, INFO)


def test_a_constructor_of_ones_own_still_works(register: Callable[[Any], Any]) -> None:
    @register
    class Constructed(Method):
        card = Card(name="test_constructed", version=1, family="logit", title="Constructed")

        def __init__(self, student: Network, teacher: Network, info: DataInfo, settings: MethodSettings) -> None:
            super().__init__(student, teacher, info, settings)
            self.scale = nn.Parameter(torch.ones(()))

    method: Any = kd_methods.build("test_constructed", small(), small(), INFO)
    assert list(method.state_dict()) == ["scale"]


def test_a_method_without_a_teacher_has_none() -> None:
    method = kd_methods.build("student", small(), None, INFO)
    with pytest.raises(LookupError, match="has no teacher"):
        _ = method.teacher


@pytest.mark.parametrize(
    ("method", "values"), [("kd", {"temperature": True}), ("crd+kd", {"kd": {"temperature": True}})]
)
def test_a_truth_value_is_no_number(method: str, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^setting kd\.temperature=True: Input should be a number; YAML reads yes"):
        registry.settings(method, values)
