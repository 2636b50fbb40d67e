"""Methods on small networks: which settings and pairs are tested, and what a method sees of one batch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from operator import methodcaller
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import kd_methods
from benchmarks import networks
from benchmarks.networks import Chain, ImageClassifier, NetworkView, build_network
from kd_methods.contract import (
    FIELDS,
    NO_OUTPUTS,
    Batch,
    DataInfo,
    Layout,
    Losses,
    Method,
    Needs,
    Outputs,
    Progress,
)

CLASSES = 10
INFO = DataInfo(num_samples=100, num_classes=CLASSES, labels=torch.arange(100) % CLASSES)
EVERY = kd_methods.available()
NAMES = [
    name for name in EVERY if kd_methods.card(name).modality != "detection"
]  # those: tests/detection/test_detectors.py
# Settings that switch to other code, tested like methods of their own.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "at": [{"p": 1}],
    "kdsvd": [{"k": 2}],
    "reviewkd": [{"student_preact": True}],
    "ofd": [{"teacher_bn": "batch"}],
    "cat_kd": [{"normalize": True}],
    "norm": [{"schedule": "constant"}],
    "ofa": [{"eps": 1.5}],
    "crd": [{"negatives": 20}],
    "mgd": [{"dropped": "pixels"}],
    "feature_only": [
        {"detach": False, "kd": 1.0},
        {"mapping": "full", "projector": "three_layer"},
        {"distance": "gram"},
    ],
    "letkd1": [{"normalise_assignment": False}],
    "letkd2": [{"alpha_intermediate": 0.0}],
    "block_kd": [
        {"distance": "dkd"},
        {"teacher_bn": "batch"},
        {"connector": "conv3x3_leaky"},
        {"connector": "transposed"},
        {"sample_stones": 2},
        {"active_stones": (), "warmup": 2.0},
    ],
}
VARIANTS |= {name: [{"scales": (1, 2, 4)}] for name in ("sdd_kd", "sdd_dkd", "sdd_nkd")}
VARIANTS |= {"wkd_l": [{"schedule": "constant"}], "wkd_f": [{"schedule": "constant"}]}
VARIANTS |= {"diffkd": [{"latent": 24, "steps": 2}], "minilmv2": [{"teacher_layer": 2, "head_width": 32}]}
VARIANTS["fcfd"] = [{"teacher_bn": "eval"}, {"directions": "to_teacher"}, {"paths": 0}]
VARIANTS |= {"rld": [{"alpha_temperature": 4.0}], "abkd": [{"alpha": 0.0, "beta": 1.0}]}
VARIANTS["pkd_patient"] = [{"layers": "last", "reduction": "batchmean"}]
VARIANTS["tinybert"] = [{"hard": 0.5}]
COMPOSED = ["kd@ls", "dkd@ls", "ctkd@ls", "mlld@ls", "crd+kd", "reviewkd+dkd", "norm+sp", "ab+kd@ls"]
COMPOSED += ["letkd2+sp", "letkd2+anc"]
UNTAUGHT: dict[str, dict[str, Any]] = {"crld": {"weak_threshold": 0.0, "strong_threshold": 0.0}}
"""Settings by which a teacher that never learnt is heard."""
CASES = [
    (name, UNTAUGHT.get(name, {}) | values) for name in [*NAMES, *COMPOSED] for values in ({}, *VARIANTS.get(name, []))
]
IDS = [f"{name}{values or ''}" for name, values in CASES]
PAIRS = [
    ("resnet14", "resnet8"),
    ("wrn_16_1", "wrn_16_1"),
    ("resnet8", "ShuffleV2x0.5"),  # student's maps smaller
    ("vgg8", "resnet8"),  # student's maps larger, four stages against three
    ("vgg8", "MobileNetV2"),
    ("MobileNetV2", "wrn_16_1"),
]
REFUSED = {"fsp": "equal channels", "ft": "1x1 map", "wkd_f": "two positions"} | dict.fromkeys(
    ["letkd1", "letkd2", "quest", "letkd2+sp", "letkd2+anc"], "teacher maps"
)
"""Methods that cannot work on every pair of CNNs, and a part of what they say then."""
each_case = pytest.mark.parametrize(("name", "values"), CASES, ids=IDS)
TEXT_PAIR = ("bert_l4_h64", "bert_l2_h64")
WORDS, LENGTH = 60, 7
ATTENTION = ("queries", "keys", "values")
OWN_PAIRS = {"vitkd": ("vit", "vit")}


def pair_for(name: str) -> tuple[str, str]:
    """A pair that the method is made for."""
    return OWN_PAIRS.get(name, TEXT_PAIR if kd_methods.card(name).modality == "text" else ("resnet14", "resnet8"))


class TinyViT(ImageClassifier):
    """A small vision transformer with a class token: tokens (B, L, D) of a square of patches and one more."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 24))
        self.blocks = nn.ModuleList(Block(24, 2) for _ in range(3))
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, CLASSES)

    def chain(self) -> Chain:
        blocks = tuple((f"blocks.{i}", block) for i, block in enumerate(self.blocks))
        ends = tuple(name for name, _ in blocks)
        units = (
            ("patches", self._tokens),
            *blocks,
            ("norm", self.norm),
            ("pool", lambda x: x[:, 0]),
            ("head", self.head),
        )
        return Chain(units, Layout("patches", ends, ends, ends, "norm", "pool", prefix_tokens=1))

    def _tokens(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), patches], 1)


@functools.cache
def network(name: str, role: str) -> NetworkView:
    """A small network whose running statistics have seen data; teachers are frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(len(name) + 100 * (role == "teacher"))
        if name in networks.ENCODERS:
            view = build_network(name, CLASSES, vocabulary=WORDS)
            return view.requires_grad_(False).eval() if role == "teacher" else view
        if name == "vit":
            view = NetworkView(TinyViT(), methodcaller("chain"), (3, 16, 16))
        else:
            view = build_network(name, CLASSES, (3, 16, 16))
        for _ in range(3):
            view(torch.randn(8, 3, 16, 16), fields=())
    return view.requires_grad_(False).eval() if role == "teacher" else view


def make_batch(size: int = 6, seed: int = 0, text: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    if text:
        lengths = torch.randint(3, LENGTH + 1, (size,), generator=generator)
        lengths[0] = LENGTH
        mask = (torch.arange(LENGTH) < lengths[:, None]).long()
        ids = torch.randint(5, WORDS, (size, LENGTH), generator=generator) * mask
        labels = torch.randint(0, CLASSES, (size,), generator=generator)
        x = torch.stack([ids, mask, mask * (torch.arange(LENGTH) > 2)], 1)
        return Batch(x, labels, torch.arange(size), F.cross_entropy, x)
    inputs = torch.randn(size, 3, 16, 16, generator=generator)
    labels = torch.randint(0, CLASSES, (size,), generator=generator)
    second = inputs + 0.3 * torch.randn(size, 3, 16, 16, generator=generator)
    return Batch(inputs, labels, torch.arange(size), F.cross_entropy, second)


Step = Callable[[Any, Any, Batch, Progress], Losses]


class Setup:
    """A method on a pair, and what it sees of one batch."""

    def __init__(
        self,
        name: str,
        values: dict[str, Any] | None = None,
        pair: tuple[str, str] | None = None,
        size: int = 6,
    ) -> None:
        torch.manual_seed(7)
        pair = pair or pair_for(name)
        self.pair = pair
        self.teacher = network(pair[0], "teacher")
        self.plain = copy.deepcopy(network(pair[1], "student"))  # a method may change it
        self.method: Method = kd_methods.build(name, self.plain, self.teacher, INFO, **(values or {})).train()
        self.student = self.method.adapt(self.plain).train()
        self.text = pair[1] in networks.ENCODERS
        self.batch = make_batch(size, text=self.text)
        self.progress = Progress(1.0, 240)

    def all_phases(self) -> Iterator[tuple[str, Needs, Step, bool]]:
        """The first phases and the training proper: prefix of their terms, needs, losses, whether the student runs."""
        for phase in self.method.phases():
            yield f"{phase.name}/", phase.needs, phase.losses, phase.student
        yield "", self.method.needs, self.method.losses, True

    def outputs(self, needs: Needs | None = None, everything: bool = False) -> tuple[Outputs, Outputs]:
        needs = needs or self.method.needs
        every = (*FIELDS, *ATTENTION)
        s_fields = every if everything else needs.student
        t_fields = every if everything else [field for field in needs.teacher if field != "logits"]
        views = []
        for x in (self.batch.inputs, self.batch.second)[: 2 if everything else needs.views]:
            student = self.student(x, at=needs.student_units, fields=s_fields)
            with torch.no_grad():
                teacher = self.teacher.fold_batch_norms()(x, at=needs.teacher_units, fields=t_fields)
            views.append((student, teacher))
        (student, teacher), *second = views
        return (student.with_second(second[0][0]), teacher.with_second(second[0][1])) if second else (student, teacher)

    def step(self) -> Losses:
        """The terms of one batch, those of first phases under the phase's name."""
        summed = Losses()
        for prefix, needs, losses, runs in self.all_phases():
            student, teacher = self.outputs(needs)
            terms = losses(student if runs else NO_OUTPUTS, teacher, self.batch, self.progress)
            summed.task |= {f"{prefix}{key}": term for key, term in terms.task.items()}
            summed.distill |= {f"{prefix}{key}": term for key, term in terms.distill.items()}
        return summed

    def losses(self) -> Losses:
        """As :meth:`step`, but repeatable: draws start alike and what the method keeps is put back."""
        buffers_before = [
            (m, {k: b if b is None else b.clone() for k, b in m._buffers.items()}) for m in self.method.modules()
        ]
        torch.manual_seed(11)
        losses = self.step()
        for module, buffers in buffers_before:
            module._buffers.update(buffers)  # not in place: the backward pass may need what is there
        return losses


def total_of(terms: dict[str, Tensor]) -> Tensor:
    return Losses(distill=terms).total()


def clear(module: nn.Module) -> None:
    module.zero_grad(set_to_none=True)
