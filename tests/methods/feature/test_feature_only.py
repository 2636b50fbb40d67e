"""Feature-only KD: its networks, what each loss trains, which layers meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import kd_methods
from benchmarks.networks import NetworkView, build_network, count
from kd_methods import functional
from kd_methods.contract import Batch, DataInfo, Progress
from kd_methods.errors import UserError
from kd_methods.feature._connectors import spatial
from kd_methods.feature.feature_only import FeatureOnly
from kd_methods.functional.feature import same_size

INFO = DataInfo(100, 10, torch.arange(100) % 10)
SIZES = {
    "ResNet34": (21_282_122, 21_328_292),
    "ResNet9": (4_903_242, 4_949_412),
    "vgg19_bn": (38_958_922, 39_327_652),
    "vgg11_bn": (28_149_514, 28_518_244),
    "MobileNetV2x1": (2_236_682, 2_351_972),
    "vit_b": (85_152_010, 85_221_220),
    "vit_ett": (2_991_946, 3_009_316),
}
CUT = {"ResNet9": 5_130, "MobileNetV2x1": 424_970, "vgg11_bn": 18_923_530, "vit_ett": 373_258}
"""Parameters behind the last matched layer, trained by the labels alone."""


def built(pair: tuple[str, str], **values: Any) -> tuple[FeatureOnly, NetworkView]:
    torch.manual_seed(0)
    teacher = build_network(pair[0], 10).requires_grad_(False).eval()
    student = build_network(pair[1], 10)
    method = kd_methods.build("feature_only", student, teacher, INFO, **values)
    return method, method.adapt(student)  # type: ignore[return-value]


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_their_published_sizes(name: str):
    with torch.device("meta"):
        assert tuple(count(build_network(name, classes).parameters()) for classes in (10, 100)) == SIZES[name]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ResNet34_64", 21_379_592),
        ("ResNet9_64", 5_000_712),
        ("MobileNetV2x1_64", 2_480_072),
        ("vgg11_bn", 28_927_944),
        ("vit_b_p8", 85_408_712),
        ("vit_ett_p8", 3_056_264),
    ],
)
def test_networks_for_tiny_imagenet_have_their_published_sizes(name: str, size: int):
    with torch.device("meta"):
        assert count(build_network(name, 200, (3, 64, 64)).parameters()) == size


def test_the_stem_of_networks_for_64_pixels_is_matched_before_its_pooling():
    network = build_network("ResNet9_64", 10, (3, 64, 64))
    assert network.shape(network.layout.layers[0]) == (64, 64, 64)
    assert network.shapes("stem") == ((64, 32, 32),)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("ResNet9", [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]),
        ("MobileNetV2x1", [(24, 16, 16), (32, 8, 8), (96, 4, 4), (320, 2, 2)]),
        ("vgg11_bn", [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]),
        ("vit_ett", [(65, 192)] * 4),
    ],
)
def test_students_layers(name: str, shapes: list[tuple[int, ...]]):
    network = build_network(name, 10)
    assert [network.shape(unit) for unit in network.layout.stages] == shapes
    indices = {
        "ResNet9": (1, 2, 3, 4),
        "MobileNetV2x1": (3, 6, 13, 17),
        "vgg11_bn": (1, 3, 5, 7),
        "vit_ett": (1, 3, 5, 7),
    }
    assert tuple(network.layout.layers.index(unit) for unit in network.layout.stages) == indices[name]


@pytest.mark.parametrize("name", CUT)
def test_labels_train_only_what_follows_the_last_matched_layer(name: str):
    teacher = {"vit_ett": "vit_ett"}.get(name, "ResNet9")
    method, student = built((teacher, name))
    student.train()
    x, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    needs = method.needs
    outputs = student(x, at=needs.student_units, fields=())
    head = nn.functional.cross_entropy(outputs.logits, labels)
    trained = torch.autograd.grad(head, list(student.parameters()), allow_unused=True)
    sizes = [p.numel() for p, g in zip(student.parameters(), trained, strict=True) if g is not None]
    assert sum(sizes) == CUT[name]
    _, student = built((teacher, name), detach=False)
    loss = nn.functional.cross_entropy(student(x, fields=()).logits, labels)
    assert all(g is not None for g in torch.autograd.grad(loss, list(student.parameters()), allow_unused=True))


def test_features_alone_train_the_backbone_and_the_plain_student_is_deployed():
    method, student = built(("resnet14", "resnet8"))
    x = torch.randn(4, 3, 32, 32)
    outputs = student(x, at=method.needs.student_units, fields=())
    teacher = method.teacher(x, at=method.needs.teacher_units, fields=())
    batch = Batch(x, torch.arange(4), torch.arange(4), nn.functional.cross_entropy)
    losses = method.losses(outputs, teacher, batch, Progress(1, 50))
    assert set(losses.terms()) == {"task", "feature"}
    reached = torch.autograd.grad(losses.distill["feature"], list(student.parameters()), allow_unused=True)
    names = [name for name, _ in student.named_parameters()]
    assert {name for name, g in zip(names, reached, strict=True) if g is None} == {"module.fc.weight", "module.fc.bias"}
    assert method.deployed(student) is student.module


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"),
    [
        ((64, 32, 32), (256, 8, 8), (256, 8, 8)),  # the student's is pooled
        ((320, 2, 2), (512, 4, 4), (512, 2, 2)),  # the teacher's is
        ((32, 8, 8), (256, 8, 8), (256, 8, 8)),
        ((512, 4, 4), (512,), (512, 1, 1)),
        ((65, 192), (65, 768), (768, 1, 65)),
    ],
)
def test_the_larger_map_is_pooled_to_the_smaller(student: tuple, teacher: tuple, wanted: tuple):
    from kd_methods.feature.feature_only import _projector

    for three_layer in (False, True):
        s, t = same_size(spatial(torch.randn(2, *student)), spatial(torch.randn(2, *teacher)))
        assert _projector("feature_only", student, teacher, three_layer)(s).shape == t.shape == (2, *wanted)


def test_feature_term_is_the_mean_over_layers():
    method, student = built(("ResNet9", "ResNet9"), mapping="full", layers=(0, 2, 3, 5))
    x = torch.randn(3, 3, 32, 32)
    ours = student.eval()(x, at=method.needs.student_units, fields=())
    theirs = method.teacher(x, at=method.needs.teacher_units, fields=())
    batch = Batch(x, torch.arange(3), torch.arange(3), nn.functional.cross_entropy)
    term = method.losses(ours, theirs, batch, Progress(1, 50)).distill["feature"]
    total = torch.zeros(())
    for i, s_unit in enumerate(method.student_units):
        for j, t_unit in enumerate(method.teacher_units):
            s, t = ours[s_unit], spatial(theirs[t_unit])
            size = min(s.shape[-1], t.shape[-1])
            s, t = (nn.functional.adaptive_avg_pool2d(value, size) for value in (s, t))
            total = total + (method.projectors[f"{i}-{j}"](s) - t).pow(2).mean() / 4
    assert torch.allclose(term, total / 4, rtol=1e-5)


def test_legacy_switches_repeat_the_public_codes_mistakes():
    tokens = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3)
    assert torch.equal(spatial(tokens)[:, :, 0], tokens.transpose(1, 2))
    assert torch.equal(spatial(tokens, scrambled=True)[:, :, 0], tokens.view(2, 3, 5))
    s, t = torch.randn(4, 6), torch.randn(4, 9)
    cosines = [torch.cosine_similarity(x[:, None], x[None], dim=2) for x in (s, t)]
    assert torch.allclose(functional.cosine_gram(s, t), (cosines[0] - cosines[1]).pow(2).mean())
    row = (cosines[0][0] - cosines[1][0]).pow(2).mean()
    assert torch.allclose(functional.cosine_gram(s, t, first_row=True), row)


def test_a_legacy_switch_that_would_do_nothing_is_one_line():
    with pytest.raises(UserError, match="legacy gram is a mistake of distance gram"):
        built(("resnet14", "resnet8"), legacy=("gram",))
    with pytest.raises(UserError, match="self_pairs is about selection Q and S"):
        built(("resnet14", "resnet8"), self_pairs=False, selection="E")
    with pytest.raises(UserError, match="legacy=view is about tokens"):
        built(("resnet14", "resnet8"), legacy=("view",))


@pytest.mark.parametrize("selection", ["Q", "stages"])
def test_every_layer_of_the_student_is_matched_whatever_the_number_of_stages(selection: str):
    """Three stages beside four: the last ones meet, and nothing before the detached head is left untrained."""
    method, student = built(("resnet14", "MobileNetV2"), selection=selection)
    assert len(method.student_units) == len(method.teacher_units) == (4 if selection == "Q" else 3)
    assert method.student_units[-1] == student.layout.stages[-1]
    x = torch.randn(4, 3, 32, 32)
    outputs = student(x, at=method.needs.student_units, fields=())
    teacher = method.teacher(x, at=method.needs.teacher_units, fields=())
    batch = Batch(x, torch.arange(4), torch.arange(4), nn.functional.cross_entropy)
    total = method.losses(outputs, teacher, batch, Progress(1, 50)).total()
    assert all(g is not None for g in torch.autograd.grad(total, list(student.parameters()), allow_unused=True))


def test_layers_that_are_not_there_are_one_line():
    for layers in ((), (0, 1, 2, 3), (0, 1, 99), (1, 1, 1), (5, 1, 2)):
        with pytest.raises(UserError, match=r"feature_only\.layers"):
            built(("resnet14", "resnet8"), layers=layers)


# --- quality
