"""The set-up that all cost measurements share: the usual recipe on images of CIFAR-100's shape."""

from __future__ import annotations

from pathlib import Path

from kd_methods import registry
from kd_methods.errors import UserError

from . import networks
from .cell import Cell, TeacherRef
from .environment import describe
from .environment import device as choose
from .plan import make_cell
from .profiling import Bench
from .spec import load_protocol, pair_settings
from .tasks import get_task

RECIPE = "cifar100-crd240"
TASK = "synthetic"


class Suite:
    """Protocol, data, device and machine.

    Args:
        device: auto, cpu, cuda or cuda:N.
        batch_size: images per training step; 0 for the recipe's.
    """

    def __init__(self, device: str = "auto", batch_size: int = 0) -> None:
        usual = load_protocol(RECIPE)
        update = {"task": TASK, "batch_size": batch_size or usual.batch_size, "second_view": "randaugment"}
        self.protocol = usual.model_copy(update=update)
        self.device = choose(device)
        self.data = get_task(TASK).open(Path(), self.protocol, self.device)
        self.machine = describe(self.device)

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
        values = dict(pair_settings(method, pair, RECIPE))
        return make_cell(self.protocol, TASK, method, student, 0, ref, values, {})

    def bench(self, method: str, pair: str) -> Bench:
        """A method on a pair, ready to make steps.

        Raises:
            UserError: as :meth:`cell`, or the method is not made for the pair.
        """
        return Bench(self.cell(method, pair), self.protocol, self.data)
