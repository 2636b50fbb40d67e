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
from kd_methods.contract import (
    FIELDS,
    AnchorRelations,
    Batch,
    DenseHeads,
    DenseOutputs,
    Heads,
    Layout,
    Network,
    Outputs,
    Pyramid,
)
from kd_methods.errors import UserError, unknown
from kd_methods.views.modes import modes_kept

from ...networks.source import NetworkSource
from .configurations import RECIPES, check, form_of, model_configuration, prepare

NOMINAL = 128
"""Side in pixels of the square image on which shapes are computed; a detector takes images of any size."""


def build(name: str, num_classes: int, pretrained: bool) -> Detector:
    """A detector with freshly initialised weights, drawn from torch's global generator.

    Args:
        name: a name of :data:`.configurations.RECIPES`, ``mmdet::CONFIGURATION``, or a configuration file.
        num_classes: K, without background.
        pretrained: begin with the backbone's weights of ImageNet that the configuration names. Without them no stage
            is frozen, and batch-norms learn from the batch, but for those that a configuration never trains (caffe's).

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
    heads    likewise
    """

    outputs: Outputs
    batch: Batch
    terms: Mapping[str, Tensor]
    regions: Tensor
    dense: DenseOutputs | None = None
    heads: DenseHeads | None = None


class Detector(Network):
    """A detector of mmdetection as methods see it; see :class:`kd_methods.contract.Layout` for what it has.

    Two-stage detectors with one region head have ``logits`` (N, K + 1) of the regions that their training samples. Of
    one-stage detectors the pyramid is seen, and what their ``heads`` say, where that is classes and boxes alone; of
    those that give distributions of box edges and learn boxes where ATSS says (GFL) also the units ``dense`` and
    ``anchor_relations``. All these, and the backbone's maps (``c2`` …), are kept where they are asked for.

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
        for child in (module.neck, getattr(module, "rpn_head", None), dense, head):
            if isinstance(child, nn.Module):
                child.register_forward_hook(_in_fp32)
        if self.two_stage and (head is None or isinstance(head, nn.ModuleList)):
            raise UserError(f"detector {name} has not just one region head; use Faster R-CNN or a one-stage detector")
        assigner = getattr(dense, "assigner", None)
        self.distributions = hasattr(dense, "reg_max") and hasattr(assigner, "topk")
        self.classes: int = (head or dense).num_classes
        trunk, maps, answers = self._nominal()
        self._shapes: dict[str, Any] = {
            f"c{NOMINAL.bit_length() - x.shape[-1].bit_length()}": tuple(x.shape[1:]) for x in trunk
        }
        # Of other backbones the stages are not known, or have no strides of their own.
        backbone: Any = module.backbone
        known = self._stage_names() and len(self._shapes) == len(trunk) == len(backbone.out_indices)
        self._shapes = self._shapes if known else {}
        layout_trunk = tuple(self._shapes)
        first = NOMINAL.bit_length() - maps[0].shape[-1].bit_length()
        levels = tuple(f"p{first + i}" for i in range(len(maps)))
        self._shapes |= {n: tuple(x.shape[1:]) for n, x in zip(levels, maps, strict=True)}
        if self.distributions:
            self._shapes["dense"] = (4, dense.reg_max + 1)  # of a place: their number changes from batch to batch
        self._shapes["pyramid"] = tuple(tuple(x.shape[1:]) for x in self._read(maps))
        if answers == 2:  # others have more to say than classes and boxes
            self._shapes["heads"] = (dense.num_base_priors, dense.cls_out_channels)
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
            trunk=layout_trunk,
            rectified=frozenset(layout_trunk if hasattr(module.backbone, "res_layers") else ()),
        )

    def _nominal(self) -> tuple[Sequence[Tensor], Sequence[Tensor], int]:
        """Backbone's and pyramid's maps of an image of the nominal size, and how many things a dense head says."""
        with modes_kept(self.module), torch.no_grad():
            trunk = self.module.eval().backbone(torch.zeros(1, 3, NOMINAL, NOMINAL))
            maps = self.module.neck(trunk)
            return trunk, maps, 0 if self.two_stage else len(self.module.bbox_head(maps))

    def _stage_names(self) -> Sequence[str]:
        """The modules of the backbone that follow each other, as mmdetection's ResNets and MobileNetV2 name them."""
        names = getattr(self.module.backbone, "res_layers", getattr(self.module.backbone, "layers", ()))
        return names if all(isinstance(name, str) for name in names) else ()

    def training_pass(self, inputs: Tensor, samples: Any, units: Collection[str] = ()) -> TrainingPass:
        """The detector's own training pass.

        Args:
            inputs: (B, 3, H, W) as the detector's preprocessor gives them.
            samples: mmdetection's ``DetDataSample`` of every image.
            units: those that are wanted; those of the backbone, ``heads``, ``dense`` and ``anchor_relations`` are left
                out where they are not.
        """
        with ExitStack() as stack:
            trunk = stack.enter_context(recorded(self.module.backbone, "forward"))
            features = stack.enter_context(recorded(self.module, "extract_feat"))
            if self.two_stage:
                heads = stack.enter_context(recorded(self.region_head, "loss"))
            else:
                dense = stack.enter_context(recorded(self.module.bbox_head, "loss_by_feat"))
            if "dense" in units:
                targets = stack.enter_context(recorded(self.module.bbox_head, "get_targets"))
            losses = self.module.loss(inputs, samples)
        total, terms = self.module.parse_losses(losses)
        maps = tuple(features[0][1])
        units_kept: dict[str, Any] = dict(zip(self.layout.stages, maps, strict=True))
        if wanted := set(units) & set(self.layout.trunk):
            of_trunk = zip(self.layout.trunk, trunk[0][1], strict=True)
            units_kept |= {name: value for name, value in of_trunk if name in wanted}
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
        heads_kept = None
        if "heads" in units:
            units_kept["heads"] = heads_kept = DenseHeads(*(tuple(x) for x in dense[0][0][:2]))
        if "dense" in units:
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

        def task_loss(predicted: Tensor | Heads | DenseHeads, _: Tensor) -> Tensor:
            if predicted is logits:
                return total
            if isinstance(predicted, DenseHeads):
                again = self.module.bbox_head.loss_by_feat(*map(list, predicted), *dense[0][0][2:])
                return self.module.parse_losses(again)[0]
            if not self.two_stage:
                raise TypeError("a one-stage detector's task loss is that of its own logits, or of dense heads")
            heads = predicted if isinstance(predicted, Heads) else (predicted, None)
            terms_of_heads = self.region_head.loss(*heads, *target)
            return torch.stack([value for name, value in terms_of_heads.items() if "loss" in name]).sum()

        positions = torch.arange(len(inputs), device=inputs.device)
        batch = Batch(inputs, labels, positions, task_loss, boxes=corners)
        return TrainingPass(Outputs(logits, units_kept, self.layout), batch, terms, regions, answer, heads_kept)

    def teacher_pass(self, inputs: Tensor, student_pass: TrainingPass, logits: bool) -> Outputs:
        """A frozen detector on the images of a student's pass, at the regions and places that the student sampled."""
        with torch.no_grad():
            maps = tuple(self.module.extract_feat(inputs))
            units_kept: dict[str, Any] = dict(zip(self.layout.stages, maps, strict=True))
            region_logits = None
            if self.two_stage:
                units_kept["pyramid"] = pyramid = Pyramid(self._read(maps), student_pass.regions)
                region_logits = self.resume("pyramid", pyramid).logits if logits else None
            if student_pass.heads:
                units_kept["heads"] = self._heads(maps)
            if student_pass.dense:
                scores, edges, *_ = self.module.bbox_head(maps)
                units_kept["dense"] = self._dense(scores, edges, student_pass.dense.level, student_pass.dense.positive)
        return Outputs(region_logits, units_kept, self.layout)

    def _read(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The levels that the heads read."""
        return tuple(maps[: self.module.roi_head.bbox_roi_extractor.num_inputs] if self.two_stage else maps)

    def _heads(self, maps: Sequence[Tensor]) -> DenseHeads:
        """What dense heads say of a pyramid."""
        scores, boxes, *_ = self.module.bbox_head(tuple(maps))
        return DenseHeads(tuple(scores), tuple(boxes))

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
        by_level = [torch.stack(of_images).split(sizes, 1) for of_images in (valuable, near)]
        return AnchorRelations(*(torch.cat([level.flatten() for level in levels]) for levels in by_level))

    def forward(self, x: Tensor, at: Iterable[str] = (), fields: Iterable[str] = FIELDS) -> Outputs:
        raise NotImplementedError("a detector learns from images with objects; see training_pass and teacher_pass")

    def resume(self, unit: str, feature: Any, until: str | None = None) -> Any:
        """What the heads say of a :class:`Pyramid`: their :class:`Heads` or :class:`DenseHeads`.

        After a unit of the backbone the pyramid is one of the backbone's maps up to there.
        """
        if unit not in ("pyramid", *self.layout.trunk) or until:
            raise UserError(f"unit '{unit}': a detector is resumed to its end, after 'pyramid' or its backbone's units")
        maps = feature.maps if unit == "pyramid" else self._read(self.module.neck(self._trunk(feature.maps)))
        if not self.two_stage:
            return self._heads(maps)
        predicted = self.module.roi_head._bbox_forward(maps, feature.regions)
        return Heads(predicted["cls_score"], predicted["bbox_pred"])

    def _trunk(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The backbone's maps: those that are given, from the finest on, and what its later stages make of the last."""
        backbone, names, outputs, x = self.module.backbone, self._stage_names(), list(maps), maps[-1]
        for place in range(backbone.out_indices[len(maps) - 1] + 1, backbone.out_indices[-1] + 1):
            x = getattr(backbone, names[place])(x)
            if place in backbone.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def insert(self, unit: str, name: str, module: nn.Module) -> Network:
        raise UserError("modules cannot be inserted into detectors")

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
        return form_of(name) is not None

    def check(self, name: str) -> None:
        check(name)

    def build(self, name: str, num_classes: int, input_shape: tuple[int, ...], vocabulary: int) -> Detector:
        return build(name, num_classes, pretrained=False)

    def init_from(self, student: Network, teacher: Network, which: str) -> None:
        if which != "heads":
            super().init_from(student, teacher, which)
        init_from(student, teacher)  # type: ignore[arg-type]


SOURCES = (Detectors(),)
