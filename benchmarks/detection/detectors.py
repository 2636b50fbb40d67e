"""Detectors of mmdetection as methods see them: training passes, pyramids and heads.

Importing this module imports nothing of mmdetection, so that plans can be made without the extra [detection].
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd_methods import functional
from kd_methods.contract import FIELDS, AnchorRelations, Batch, DenseOutputs, Heads, Layout, Network, Outputs, Pyramid
from kd_methods.errors import UserError, unknown
from kd_methods.views.modes import modes_kept

from ..networks.source import NetworkSource
from .configurations import RECIPES, check, is_detector, model_configuration, prepare

NOMINAL = 128
"""Side in pixels of the square image on which shapes are computed; a detector takes images of any size."""


def build(name: str, num_classes: int, pretrained: bool) -> Detector:
    """A detector with freshly initialised weights, drawn from torch's global generator.

    Args:
        name: a name of :data:`.configurations.RECIPES`, ``mmdet::CONFIGURATION``, or a configuration file.
        num_classes: K, without background.
        pretrained: begin with the backbone's weights of ImageNet that the configuration names. Without them no stage
            is frozen, and batch-norms learn from the batch.

    Raises:
        UserError: no such detector, or weights that cannot be had.
    """
    prepare()
    from mmdet.registry import MODELS
    from mmengine.logging import MMLogger

    MMLogger.get_current_instance().setLevel(logging.WARNING)  # else it prints a line for every tensor
    module = MODELS.build(model_configuration(name, num_classes, pretrained))
    try:
        module.init_weights()
    except Exception as error:  # whatever its file clients and the network raise
        raise UserError(
            f"the backbone's weights for {name} cannot be had ({type(error).__name__}); put the file into torch's "
            "cache, or run a protocol with pretrained: false"
        ) from None
    return Detector(module)


@contextmanager
def recorded(owner: nn.Module, name: str) -> Iterator[list[tuple[tuple[Any, ...], Any]]]:
    """Inside, the arguments and results of a method's calls are kept; the method stays what it is."""
    calls: list[tuple[tuple[Any, ...], Any]] = []
    method = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        calls.append((args + tuple(kwargs.values()), result))
        return result

    owner.__dict__[name] = call
    try:
        yield calls
    finally:
        del owner.__dict__[name]


def _in_fp32(_: nn.Module, inputs: Any, output: Any) -> Any:
    """What a neck or a head gives under autocast, in fp32.

    mmdetection places boxes in the type of what it is given, and eight bits do not tell two places of an image apart.
    """
    if isinstance(output, Tensor):
        return output.float()
    if type(output) in (list, tuple):
        return type(output)(_in_fp32(_, inputs, each) for each in output)
    return output


@dataclass(frozen=True)
class TrainingPass:
    """One training pass of a detector: what methods see of it, its own losses by name, and where it looked.

    regions  (N, 5) as in :class:`kd_methods.contract.Pyramid`
    dense    the unit of that name, where it was asked for
    """

    outputs: Outputs
    batch: Batch
    terms: Mapping[str, Tensor]
    regions: Tensor
    dense: DenseOutputs | None = None


class Detector(Network):
    """A detector of mmdetection as methods see it; see :class:`kd_methods.contract.Layout` for what it has.

    Two-stage detectors with one region head have ``logits`` (N, K + 1) of the regions that their training samples. Of
    one-stage detectors only the pyramid is seen; of those that give distributions of box edges and learn boxes where
    ATSS says (GFL) also the units ``dense`` and ``anchor_relations``, where they are asked for.

    Args:
        module: the detector as mmdetection builds it.

    Raises:
        UserError: a detector without a pyramid (a neck that gives several maps).
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module
        name = type(module).__name__
        dense: Any = getattr(module, "bbox_head", None)
        if getattr(module, "neck", None) is None:
            raise UserError(f"detector {name} has no neck; methods of detection compare feature pyramids")
        roi_head = getattr(module, "roi_head", None)
        self.two_stage = roi_head is not None
        head: Any = getattr(roi_head, "bbox_head", None)
        self.region_head = head
        for part in (module.neck, getattr(module, "rpn_head", None), dense, head):
            if isinstance(part, nn.Module):
                part.register_forward_hook(_in_fp32)
        if self.two_stage and (head is None or isinstance(head, nn.ModuleList)):
            raise UserError(f"detector {name} has not just one region head; use Faster R-CNN or a one-stage detector")
        assigner = getattr(dense, "assigner", None)
        self.distributions = hasattr(dense, "reg_max") and hasattr(assigner, "topk")
        self.classes: int = (head or dense).num_classes
        maps = self._nominal()
        first = NOMINAL.bit_length() - maps[0].shape[-1].bit_length()
        levels = tuple(f"p{first + i}" for i in range(len(maps)))
        self._shapes: dict[str, tuple[int, ...]] = {n: tuple(x.shape[1:]) for n, x in zip(levels, maps, strict=True)}
        if self.distributions:
            self._shapes["dense"] = (4, dense.reg_max + 1)  # of a place: their number changes from batch to batch
        if self.two_stage:
            self._shapes["pyramid"] = tuple(tuple(x.shape[1:]) for x in self._read(maps))  # type: ignore[misc]
        sigmoids = not self.two_stage or head.loss_cls.use_sigmoid
        self.layout = Layout(
            stem="",
            stages=levels,
            preacts=(),
            blocks=(),
            last_map="",
            pooled="",
            layers=levels,
            modality="detection",
            softmax=not sigmoids,
        )

    def _nominal(self) -> Sequence[Tensor]:
        with modes_kept(self.module), torch.no_grad():
            return self.module.eval().extract_feat(torch.zeros(1, 3, NOMINAL, NOMINAL))

    def training_pass(self, inputs: Tensor, samples: Any, units: Collection[str] = ()) -> TrainingPass:
        """The detector's own training pass.

        Args:
            inputs: (B, 3, H, W) as the detector's preprocessor gives them.
            samples: mmdetection's ``DetDataSample`` of every image.
            units: those that are wanted; ``dense`` and ``anchor_relations`` are left out where they are not.
        """
        with ExitStack() as stack:
            features = stack.enter_context(recorded(self.module, "extract_feat"))
            if self.two_stage:
                heads = stack.enter_context(recorded(self.region_head, "loss"))
            elif "dense" in units:
                dense = stack.enter_context(recorded(self.module.bbox_head, "loss_by_feat"))
                targets = stack.enter_context(recorded(self.module.bbox_head, "get_targets"))
            losses = self.module.loss(inputs, samples)
        total, terms = self.module.parse_losses(losses)
        maps = tuple(features[0][1])
        units_kept: dict[str, Any] = dict(zip(self.layout.stages, maps, strict=True))
        corners = tuple(sample.gt_instances.bboxes for sample in samples)
        corners = tuple(getattr(boxes, "tensor", boxes) for boxes in corners)
        regions = inputs.new_zeros(0)
        answer: DenseOutputs | None = None
        labels, logits = inputs.new_zeros(0, dtype=torch.long), total.detach().reshape(1, 1)
        target: tuple[Any, ...] = ()
        if self.two_stage:
            (logits, _, regions, labels, *rest), _ = heads[0]
            target = (regions, labels, *rest[:3])
            units_kept["pyramid"] = Pyramid(self._read(maps), regions)
        elif "dense" in units:
            (anchors, valid, *_), (_, learnt, *_) = targets[0]
            level = torch.cat([torch.full_like(offsets, number).flatten() for number, offsets in enumerate(learnt)])
            classes = torch.cat([offsets.flatten() for offsets in learnt])
            if "anchor_relations" in units:
                units_kept["anchor_relations"] = self._anchor_relations(
                    anchors, valid, [level.shape[1] for level in learnt], corners
                )
            (scores, edges, *_), _ = dense[0]
            answer = self._dense(scores, edges, level, (classes >= 0) & (classes < self.classes))
            units_kept["dense"] = answer

        def task_loss(predicted: Tensor | Heads, _: Tensor) -> Tensor:
            if predicted is logits:
                return total
            if not self.two_stage:
                raise TypeError("a one-stage detector's task loss is that of its own logits alone")
            heads = predicted if isinstance(predicted, Heads) else (predicted, None)
            terms_of_heads = self.region_head.loss(*heads, *target)
            return torch.stack([value for name, value in terms_of_heads.items() if "loss" in name]).sum()

        positions = torch.arange(len(inputs), device=inputs.device)
        batch = Batch(inputs, labels, positions, task_loss, boxes=corners)
        return TrainingPass(Outputs(logits, units_kept, self.layout), batch, terms, regions, answer)

    def teacher_pass(self, inputs: Tensor, student_pass: TrainingPass, logits: bool) -> Outputs:
        """A frozen detector on the images of a student's pass, at the regions and places that the student sampled."""
        with torch.no_grad():
            maps = tuple(self.module.extract_feat(inputs))
            units_kept: dict[str, Any] = dict(zip(self.layout.stages, maps, strict=True))
            region_logits = None
            if self.two_stage:
                units_kept["pyramid"] = pyramid = Pyramid(self._read(maps), student_pass.regions)
                region_logits = self.resume("pyramid", pyramid).logits if logits else None
            elif student_pass.dense:
                scores, edges, *_ = self.module.bbox_head(maps)
                units_kept["dense"] = self._dense(scores, edges, student_pass.dense.level, student_pass.dense.positive)
        return Outputs(region_logits, units_kept, self.layout)

    def _read(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The levels that the region heads read."""
        return tuple(maps[: self.module.roi_head.bbox_roi_extractor.num_inputs])

    def _dense(
        self, scores: Sequence[Tensor], edges: Sequence[Tensor], level: Tensor, positive: Tensor
    ) -> DenseOutputs:
        """What the head gave, (B, ., H, W) for every level, place by place."""
        answers = [torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in levels]) for levels in (scores, edges)]
        return DenseOutputs(answers[0], answers[1].unflatten(1, self.shape("dense")), level, positive)

    def _anchor_relations(
        self, anchors: Sequence[Tensor], valid: Sequence[Tensor], sizes: list[int], boxes: Sequence[Tensor]
    ) -> AnchorRelations:
        """Where the places of a batch lie to its objects.

        Args:
            anchors, valid: of every image, all levels together: corners (n, 4), and whether the image reaches there.
            sizes: how many anchors each level has.
            boxes: of every image the corners of its objects.
        """
        assigner: Any = self.module.bbox_head.assigner
        valuable, near = [], []
        for corners, flags, objects in zip(anchors, valid, boxes, strict=True):
            inside = flags.bool()
            counts = [int(level.sum()) for level in inside.split(sizes)]
            weights = functional.valuable_region(corners[inside], counts, objects, candidates=assigner.topk)
            valuable.append(corners.new_zeros(len(flags)).masked_scatter(inside, weights))
            near.append(inside.masked_scatter(inside, functional.near_region(corners[inside], objects)))
        by_level = [torch.stack(parts).split(sizes, 1) for parts in (valuable, near)]
        return AnchorRelations(*(torch.cat([x.flatten() for x in parts]) for parts in by_level))

    def forward(self, x: Tensor, at: Iterable[str] = (), fields: Iterable[str] = FIELDS) -> Outputs:
        raise NotImplementedError("a detector learns from images with objects; see training_pass and teacher_pass")

    def resume(self, unit: str, feature: Any, until: str | None = None) -> Any:
        """What the region heads say of a :class:`Pyramid`: its :class:`Heads`."""
        if unit != "pyramid" or not self.two_stage or until:
            raise UserError(f"unit '{unit}': only heads of regions can be resumed from, after 'pyramid'")
        predicted = self.module.roi_head._bbox_forward(feature.maps, feature.regions)
        return Heads(predicted["cls_score"], predicted["bbox_pred"])

    def insert(self, unit: str, name: str, part: nn.Module) -> Network:
        raise UserError("parts cannot be inserted into detectors")

    def fold_batch_norms(self) -> Detector:
        return self

    def plain(self) -> nn.Module:
        return self.module

    def shape(self, unit: str) -> tuple[int, ...]:
        if unit not in self._shapes:
            raise unknown("unit", unit, self._shapes)
        return self._shapes[unit]

    def shapes(self, name: str) -> tuple[tuple[int, ...], ...]:
        return tuple(self.shape(unit) for unit in getattr(self.layout, name))


INITIALISED = ("neck", "rpn_head", "roi_head", "bbox_head")


def init_from(student: Detector, teacher: Detector) -> None:
    """Give a student its teacher's neck and heads, as FGD and MGD do; what has another shape stays as it is.

    Raises:
        UserError: nothing of them fits.
    """
    student_state, theirs = student.module.state_dict(), teacher.module.state_dict()
    taken = {
        key: theirs[key]
        for key, value in student_state.items()
        if key.partition(".")[0] in INITIALISED and key in theirs and theirs[key].shape == value.shape
    }
    if not taken:
        raise UserError("the student's neck and heads have other shapes than the teacher's; leave out init: heads")
    student.module.load_state_dict({**student_state, **taken})


class Detectors(NetworkSource):
    """Detectors of mmdetection, without weights of ImageNet."""

    name, modality = "detectors", "detection"

    def names(self) -> list[str]:
        return list(RECIPES)

    def has(self, name: str) -> bool:
        return is_detector(name)

    def check(self, name: str) -> None:
        check(name)

    def build(self, name: str, num_classes: int, input_shape: tuple[int, ...], vocabulary: int) -> Detector:
        return build(name, num_classes, pretrained=False)

    def init_from(self, student: Network, teacher: Network, which: str) -> None:
        if which != "heads":
            super().init_from(student, teacher, which)
        init_from(student, teacher)  # type: ignore[arg-type]


SOURCES = (Detectors(),)
