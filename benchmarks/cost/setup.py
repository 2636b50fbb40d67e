"""The set-up that all cost measurements share: the usual recipe on images of CIFAR-100's shape."""

from __future__ import annotations

import copy
from pathlib import Path

from kd_methods import registry
from kd_methods.errors import UserError

from .. import networks
from ..common.devices import check_precision
from ..common.devices import device as choose
from ..common.environment import describe
from ..config.protocol import load_protocol
from ..config.published import pair_settings
from ..networks import NetworkView
from ..store.cell import Cell, TeacherRef
from ..store.make_cell import Distillation, make_cell
from ..tasks import get_task
from .measuring import Bench

RECIPE = "cifar100-crd240"
TASK = "synthetic"


class Suite:
    """Protocol, data, device and machine.

    Args:
        device: auto, cpu, cuda or cuda:N.
        batch_size: images per training step; 0 for the recipe's.
        task: another one with images of 32x32, found below ``data_root``, or one that the ``recipe`` is for.
    """

    def __init__(
        self,
        device: str = "auto",
        batch_size: int = 0,
        task: str = TASK,
        data_root: Path = Path(),
        recipe: str = RECIPE,
    ) -> None:
        usual = load_protocol(recipe)
        views = {"second_view": "randaugment"} if get_task(task).modality == "images" else {}
        update = {"task": task, "batch_size": batch_size or usual.batch_size, **views}
        self.protocol = usual.model_copy(update=update)
        self.device, self.data_root = choose(device), data_root
        check_precision(self.device)
        self.data = get_task(task).open(data_root, self.protocol, self.device)
        self.machine = describe(self.device)

    def computing(self, precision: str, compiled: bool) -> Suite:
        """The same with networks that compute in another precision, or compiled."""
        other = copy.copy(self)
        other.protocol = self.protocol.model_copy(update={"precision": precision, "compile": compiled})
        return other

    def teacher(self, pair: str) -> NetworkView:
        """A frozen teacher of a pair, of random weights, as :func:`benchmarks.networks.build_network` makes it."""
        network = networks.build_network(pair.partition("-")[0], self.data.info.num_classes, self.data.input_shape)
        return network.to(self.device).requires_grad_(False).eval()

    def cell(self, method: str, pair: str) -> Cell:
        """The cell of a method on a pair, with the settings that are published for it.

        Raises:
            UserError: an unknown method, or a pair that is not teacher-student.
        """
        teacher, dash, student = pair.partition("-")
        if not dash:
            raise UserError(f"'{pair}' is no pair; write teacher-student, for example resnet56-resnet20")
        for network in (teacher, student):
            networks.check(network)
        needed = registry.get(method).needs_teacher
        ref = TeacherRef(teacher, self.protocol.mean, self.protocol.std, weights="none") if needed else None
        values = pair_settings(method, pair, self.protocol.recipe)
        return make_cell(self.protocol, self.protocol.task, student, Distillation(method, ref, values))

    def bench(self, pair: str, *methods: str) -> Bench:
        """Methods on a pair, in one group, ready to make steps.

        Raises:
            UserError: as :meth:`cell`, or the method is not made for the pair.
        """
        return Bench([self.cell(method, pair) for method in methods], self.protocol, self.data)
