"""Trained weights of timm and torchvision as teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.image_files import MEAN, STD, recipe
from torch import Tensor, nn

from benchmarks.common.workspace import Workspace
from benchmarks.config.recipe import Crops
from benchmarks.networks import SOURCES, NetworkSource, build_network
from benchmarks.store.cell import TeacherRef
from benchmarks.store.make_cell import Distillation, make_cell
from benchmarks.teachers.verification import _path
from benchmarks.teachers.zoo import Zoo
from benchmarks.training.teacher_pass import identity
from kd_methods.errors import UserError


def test_weights_of_the_libraries_become_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = Zoo(tmp_path)
    entry = zoo.wanted("torchvision:resnet50.IMAGENET1K_V2")
    assert (entry.network, entry.task, entry.sha256) == ("torchvision:resnet50", "imagenet", "11ad3fa6")
    assert entry.origin == "torchvision-v2" and entry.expected is None, (
        "measured at another size than teachers here are"
    )
    assert zoo.wanted("torchvision:resnet34").expected == pytest.approx(73.314)
    assert zoo.wanted("torchvision:resnet34").origin == "torchvision"
    for no_classifier in ("fasterrcnn_resnet50_fpn.COCO_V1", "r3d_18.KINETICS400_V1", "raft_large.C_T_V2"):
        with pytest.raises(UserError, match="unknown network of torchvision"):
            zoo.wanted(f"torchvision:{no_classifier}")
    for name in ("resnet50-tv1", entry.name):
        zoo.added |= {entry.name: entry}
        file = zoo.path(zoo.get(name))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert zoo.installed("torchvision:resnet50", "imagenet") == zoo.get("resnet50-tv1"), (
        "on which published values stand"
    )
    with pytest.raises(UserError, match="did you mean"):
        zoo.wanted("timm:resnet18.a9_in1k")
    made: list[str] = []

    def create(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        made.append(name)
        return create_model("test_resnet", **arguments)

    create_model = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    entry = zoo.wanted("timm:test_resnet.r160_in1k")
    zoo.fetch([entry], lambda line: None)
    assert made[0] == "test_resnet.r160_in1k"
    installed = Zoo(tmp_path).installed("timm:test_resnet", "imagenet")
    assert installed and installed.mean == entry.mean == tuple(timm.get_pretrained_cfg("test_resnet.r160_in1k").mean)


class _Hub(NetworkSource):
    """Of one network, and weights of it."""

    name, modality, publishes = "hub", "images", True

    def has(self, name: str) -> bool:
        return name == "hub:small"

    def build(self, name: str, num_classes: int, input_shape: tuple[int, ...], vocabulary: int) -> Any:
        return build_network("resnet8", num_classes, input_shape)

    def published(self, weights: str) -> dict[str, Any]:
        return {"name": weights, "mean": MEAN, "std": STD, "sources": (f"hub:{weights}",)}

    def downloaded(self, weights: str) -> dict[str, Tensor]:
        assert weights == "small.first"
        return dict(build_network("resnet8", 1000, (3, 224, 224)).module.state_dict())


def test_a_source_of_one_s_own_publishes_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES._registered, "hub", _Hub())
    zoo, said = Zoo(tmp_path), list[str]()
    zoo.fetch([zoo.wanted("hub:small.first")], said.append)
    assert said[0] == "fetching hub:small.first" and not any("no digest" in line for line in said)
    installed = Zoo(tmp_path).installed("hub:small", "imagenet")
    assert installed and (installed.name, installed.origin) == ("small.first", "hub")
    with pytest.raises(UserError, match="library of weights"):
        zoo.wanted("hf:small.first")


def test_what_is_known_of_a_teacher_belongs_to_the_size_of_the_images(tmp_path: Path) -> None:
    """Its accuracy, and what methods prepare from it."""
    ref = TeacherRef("timm:test_resnet", MEAN, STD, weights="of this test")
    workspace = Workspace(torch.device("cpu"), output=tmp_path)
    paths, identities = set(), []
    for size, workers in ((32, 0), (32, 2), (48, 0)):
        protocol = recipe(crops=Crops(size=size, test_resize=64, workers=workers))
        paths.add(_path(ref, "files", protocol, workspace))
        identities.append(identity(make_cell(protocol, "files", "timm:test_vit", Distillation("kd", ref)), ref))
    assert len(paths) == 2 and identities[0] == identities[1] != identities[2]
