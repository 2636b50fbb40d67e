"""The adapter between a method and mmdetection: a detector that holds the student, its frozen teacher and the method.

Importing this module imports mmdetection; ``detection.networks.configurations.prepare`` has to be called before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mmdet.registry import MODELS
from mmengine.model import BaseModel
from torch import Tensor, nn

from kd_methods.contract import NO_OUTPUTS, Method, Progress

from ...training.assembly import Assembly
from ..networks.detectors import Detector


class Preprocessors(nn.Module):
    """The student's preprocessor, and for the teacher the same images as its own one normalises them."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        if not training or self.teacher is None:
            return self.student(data, training)
        # Copied, for a preprocessor writes into its samples.
        other = self.teacher(copy.deepcopy(data), training)
        return {**self.student(data, training), "teacher_inputs": other["inputs"]}

    @property
    def device(self) -> Any:
        return self.student.device


@MODELS.register_module(name="KDDistiller")
class DetectorDistiller(BaseModel):
    """A student detector that is trained by a method of the registry.

    The teacher is kept out of parameters and state dict; it moves between devices with the rest. What is saved under
    ``student.`` loads into the plain detector.

    Args:
        assembly: a detector and the method that it is trained by.
        teacher: the frozen one, or None.
        progress: says where training stands.
        precision: context in which everything is computed.
    """

    def __init__(
        self,
        assembly: Assembly,
        teacher: Detector | None,
        progress: Callable[[], Progress] = lambda: Progress(1, 1),
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        super().__init__()
        student: Any = assembly.student
        self.student: Any = student.module
        self._views = (student, teacher)
        self.method: Method = assembly.method
        self._progress = progress
        self._precision = precision
        self.data_preprocessor = Preprocessors(
            student.module.data_preprocessor, teacher.module.data_preprocessor if teacher else None
        )

    @property
    def teacher(self) -> Detector | None:
        return self._views[1]

    def init_weights(self) -> None:
        """Nothing: the student has its weights, and mmengine would draw them anew."""

    def _apply(self, fn: Any, recurse: bool = True) -> DetectorDistiller:
        if self.teacher is not None:
            self.teacher._apply(fn)
        return super()._apply(fn, recurse)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The student's and the method's tensors; preprocessors have none that are trained."""
        state = super().state_dict(*args, **kwargs)
        for key in [key for key in state if "data_preprocessor" in key]:
            del state[key]
        return state

    def forward(
        self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor", teacher_inputs: Tensor | None = None
    ) -> Any:
        """As mmdetection's detectors: in mode ``loss`` a dictionary of terms, otherwise the student's answer."""
        with self._precision():
            if mode == "loss":
                return self._losses(inputs, data_samples, teacher_inputs)
            return self.student(inputs, data_samples, mode=mode)

    def _losses(self, inputs: Tensor, data_samples: Any, teacher_inputs: Tensor | None) -> dict[str, Tensor]:
        student, teacher = self._views
        needs = self.method.needs
        student_pass = student.training_pass(inputs, data_samples, needs.student_units)
        targets = NO_OUTPUTS
        if teacher is not None and teacher_inputs is not None and (needs.teacher or needs.teacher_units):
            targets = teacher.teacher_pass(teacher_inputs, student_pass, logits="logits" in needs.teacher)
        losses = self.method.losses(student_pass.outputs, targets, student_pass.batch, self._progress())
        # mmengine adds up what is called loss; the detector's own terms are logged beside it.
        logged = {
            f"own_{name.replace('loss_', '').replace('loss', 'l')}": term.detach()
            for name, term in student_pass.terms.items()
            if name != "loss"
        }
        return {**{f"loss_{name}": term for name, term in losses.terms().items()}, **logged}
