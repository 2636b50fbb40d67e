"""One cell in training: its student, method, optimiser and random stream, and the state that resumes it exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kd_methods.contract import NO_OUTPUTS, Batch, Losses, Needs, Outputs, Phase, Progress
from kd_methods.errors import Damaged, UserError

from ..common.console import counted, first_of
from ..common.events import EpochRecord
from ..common.memory import out_of_memory
from ..common.seeding import SharedStream, Stream, seeded
from ..common.weights import read, to_bytes
from ..networks import LogitsOnly, NetworkView, count, macs
from ..store.cell import Cell
from ..store.runs import Run
from . import compilation, optimizers
from .answered import answered
from .assembly import Assembly, begin
from .averages import Averages
from .failures import Diverged, whatever_the_method
from .finished import finish, on_cpu
from .group import Group
from .isolation import Loans, apart, lend
from .optimizers.exempt import exempt
from .precision import autocast, scaler, set_tf32, without_tf32
from .replicas.gathering import gathered, running_statistics
from .replicas.synchronised import synchronised


class StudentRun:
    """A cell of a group while it trains.

    Epochs count from 1; a method's first phases end with epoch 0, so that all cells of a group then start together.

    Its method is lent what the group shares (see :mod:`.isolation`), and whatever is called of it may raise an
    Interference. Nothing is saved of a cell whose method changed what it was lent.

    Args:
        cell: what is trained.
        group: what it has in common with the cells that are trained beside it.
        run: where its results go.
        weights: those of ImageNet that the cell's student starts from, where it has such.
    """

    def __init__(self, cell: Cell, group: Group, run: Run, weights: Mapping[str, Tensor] | None = None) -> None:
        self.cell, self.protocol, self.data, self.run = cell, cell.under(group.protocol), group.data, run
        self.observe = group.observe
        protocol, device, info = self.protocol, self.data.device, self.data.info
        self.replica, self.loans = group.replica, Loans()
        self.stream = Stream(cell.seed, device) if self.replica.count == 1 else SharedStream(cell.seed, device)
        set_tf32(protocol, device)
        shared = group.teacher if cell.teacher else None
        teacher = shared.lent(self.loans) if shared else None
        if info.labels is not None:
            info = replace(info, labels=self.loans.tensor("the training set's labels", info.labels))
        with self._apart("student"):
            with whatever_the_method():
                student = self.data.build(cell.student, trained=True)
            self.drawn = begin(cell, student, teacher, weights)
        with self._apart("method"):
            assembly = Assembly(cell, student, teacher, info, device, torch.channels_last)
            self.method, self.student = assembly.method, assembly.student
            self.student.compiles = compilation.samples(protocol)  # type: ignore[assignment]
            if group.teacher_pass and teacher:
                with without_tf32(device):
                    self.method.prepare(replace(group.teacher_pass, network=teacher, lent_labels=info.labels))
            self.gathers = self.replica.count > 1 and self.method.gathers()
            phases = self.method.phases()
            for needs in (self.method.needs, *(phase.needs for phase in phases)):
                self._check_needs(teacher, needs)
            self.deployed = assembly.deployed
        self.scaler = scaler(protocol, device)
        with whatever_the_method():
            self.optimizer = optimizers.build(
                [*self.student.parameters(), *self.method.parameters()],
                protocol.optimizer.lr,
                protocol.optimizer,
                self.scaler,
                self._backbone() if protocol.optimizer.backbone != 1 else (),
                exempt(self.student) if protocol.optimizer.exempt_named else (),
            )
            if self.replica.count > 1 and not getattr(self.optimizer, "divides", False):
                raise UserError(f"optimizer {protocol.optimizer.name}: its gradients are not summed over processes")
        # For auxiliary logits the method's own modules are evaluated, too.
        evaluated = (self.deployed, self.student, *((self.method,) if self.method.auxiliary_fields() else ()))
        # The end of a teacher may be a part of the student; it is folded here only where it could be averaged.
        taught_by = (teacher, teacher.fold_batch_norms()) if teacher and protocol.ema else ()
        self.averages = Averages(evaluated, protocol.ema, taught_by)
        self._phases = [phase for phase in phases for _ in range(protocol.epochs_of(phase.epochs))]
        self.first_epoch = 1 - len(self._phases)
        self.phase: Phase | None = None
        self.position = (self.first_epoch, 0)  # the epoch and step that come next
        self.records: list[EpochRecord] = []
        self.seconds = 0.0
        self.sums: dict[str, Tensor] = {}
        self.counted = 0
        self.saved_at = time.monotonic()

    @contextmanager
    def _apart(self, *purpose: object) -> Iterator[None]:
        """Context in which the method's code runs outside of training steps."""
        with apart(self.cell.method, self.loans), seeded(self.data.device, self.cell.seed, *purpose):
            yield

    @property
    def needs(self) -> Needs:
        """What the losses of the current phase read."""
        return self.phase.needs if self.phase else self.method.needs

    def _backbone(self) -> list[nn.Parameter]:
        """The student's parameters that are not used after its last map."""
        assert isinstance(self.student, NetworkView)
        if self.student.layout.modality != "images":
            raise UserError(f"optimizer.backbone is for networks of images, {self.cell.student} reads text")
        head = self.student.used(after=self.student.layout.last_map)
        return [parameter for name, parameter in self.student.module.named_parameters() if name not in head]

    def _check_needs(self, teacher: NetworkView | None, needs: Needs) -> None:
        """Asked for before training, so that what cannot be had is this cell's failure and not the group's.

        Raises:
            UserError: batches or views that this protocol does not give.
            LookupError: a unit that the network does not have, a mistake in the method.
        """
        name, size = self.cell.method, min(self.protocol.batch_size, self.data.info.num_samples)
        size //= self.protocol.accumulate * (1 if self.gathers else self.replica.count)
        if size < needs.min_batch or (needs.max_batch and size > needs.max_batch):
            limit = f"at least {needs.min_batch}" if size < needs.min_batch else f"at most {needs.max_batch}"
            raise UserError(f"method '{name}' needs {limit} samples at once, the protocol has {size}")
        if needs.views > self.protocol.views:
            raise UserError(f"method '{name}' needs two views of each image and the protocol gives one")
        for network, fields, units in (
            (self.student, needs.student, needs.student_units),
            (teacher, tuple(field for field in needs.teacher if field != "logits"), needs.teacher_units),
        ):
            if network is not None:
                for unit in (*network.layout.units(fields), *units):
                    try:
                        network.shape(unit)
                    except UserError as error:
                        raise LookupError(f"method '{name}' reads what is not there: {error}") from None

    def start_epoch(self, epoch: int) -> None:
        before, self.phase = self._phase_of(epoch - 1), self._phase_of(epoch)
        if before is not self.phase and self.position == (epoch, 0):
            self.optimizer.restart()
            self.averages.start()
        with self._apart("epoch", epoch):
            self.student.train()
            self.method.train()

    def _set_lr(self, epoch: int, step: int) -> None:
        if self.phase:
            self.optimizer.set_lr(self.phase.lr or self.protocol.optimizer.lr, None)
            return
        steps = self.protocol.steps_on(self.data.info.num_samples)
        factor, momentum = self.protocol.lr_at(epoch, (epoch - 1) * steps + step, self.protocol.epochs * steps)
        self.optimizer.set_lr(self.protocol.optimizer.lr * factor, momentum)

    def _phase_of(self, epoch: int) -> Phase | None:
        return self._phases[epoch - self.first_epoch] if self.first_epoch <= epoch < 1 else None

    def step(
        self,
        batch: Batch,
        teacher: Outputs | None,
        position: tuple[int, int],
        progress: Progress,
        part: optimizers.Part = optimizers.WHOLE,
    ) -> None:
        """Forward, losses and backward of a part of a batch, and with its last part the update.

        The seconds counted are the host's: on a GPU, the time to launch the step.
        """
        started = time.perf_counter()
        self._set_lr(*position)
        part = replace(part, gathered=self.gathers)
        if (part.least or len(batch.labels)) >= self.needs.min_batch:
            lent, lent_teacher, loans = lend(batch, teacher, self.needs)
            with apart(self.cell.method, loans), self.stream.active(*position, part.index):
                with autocast(self.protocol, self.data.device):
                    together = synchronised(self.replica, self.protocol.sync_bn)
                    with self.stream.of_process(self.replica.rank, *position, part.index), together:
                        outputs = self.forward(lent)
                    if part.gathered:
                        outputs, lent_teacher, lent = gathered(outputs, lent_teacher, lent, part)
                        together = nullcontext()  # every process has all samples
                    with together:
                        losses = self.losses(outputs, lent_teacher, lent, progress)
                self.optimizer.backward(losses, part)
                if part.last:
                    self.optimizer.update(part)
                self._add(losses, part)
            if part.last:
                self.replica.mean_(running_statistics(self.student, self.method))
                if not self.phase:
                    self.averages.update()
            self.counted += 1
        if part.last:
            self.position = (position[0], position[1] + 1)
        self.seconds += time.perf_counter() - started

    def _add(self, losses: Losses, part: optimizers.Part) -> None:
        """Count the terms of a part, those of all processes."""
        terms = {name: term.detach().double() for name, term in losses.terms().items()}
        if self.replica.count > 1:
            terms = {name: term * part.among for name, term in terms.items()}
            self.replica.sum_(terms.values())
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0) + term

    def forward(self, batch: Batch) -> Outputs:
        """The student's pass over every view that the losses read; none in a phase without the student."""
        if self.phase and not self.phase.student:
            return NO_OUTPUTS
        needs = self.needs
        outputs = self.student(batch.inputs, at=needs.student_units, fields=needs.student)
        if needs.views > 1:
            assert batch.second is not None
            outputs = outputs.with_second(self.student(batch.second, at=needs.student_units, fields=needs.student))
        return outputs

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        """The terms of the current phase, or of the training proper."""
        losses = self.phase.losses if self.phase else self.method.losses
        if teacher and batch.answered is not None:
            return answered(losses, student, teacher, batch, progress)
        return losses(student, teacher or NO_OUTPUTS, batch, progress)

    def check_finite(self) -> None:
        """Raise Diverged, naming the term, if any loss since the epoch's start was not finite."""
        for name, total in self.sums.items():
            if not math.isfinite(float(total)):
                raise Diverged(f"loss term '{name}' is {float(total)} in epoch {self.position[0]}")

    def end_epoch(self, epoch: int) -> EpochRecord:
        """Evaluate (in the training proper), record, save. Returns the epoch's record."""
        self.check_finite()
        with self._apart("evaluation", epoch), self.averages.in_place():
            evaluated = self.evaluate() if self.replica.first and not self.phase else {"": {}}
            similarity = self._observed() if self.observe and not self.phase else None
        with self._apart("watched"):
            watched = dict(self.method.watched())
        record: EpochRecord = {
            "epoch": epoch,
            "phase": self.phase.name if self.phase else "",
            "lr": self.optimizer.param_groups[0]["lr"],
            "metrics": evaluated.pop(""),
            "probes": evaluated,
            "losses": {name: float(total) / self.counted for name, total in self.sums.items()},
            "seconds": round(self.seconds, 3),
        }
        if watched:
            record["watched"] = watched
        if similarity is not None:
            record["similarity"] = similarity
        self.records.append(record)
        self.seconds, self.sums, self.counted = 0.0, {}, 0
        self.position = (epoch + 1, 0)
        self.save()
        self.run.set_metrics(self.records)
        self.run.set_status("running", epoch=max(epoch, 0), epochs=self.protocol.epochs)
        return self.records[-1]

    def _observed(self) -> dict[str, Any]:
        """What is measured beside the results; that it fails is no failure of the cell."""
        assert self.observe is not None
        try:
            return self.observe(self.student)
        except (RuntimeError, ValueError, LookupError) as error:
            if out_of_memory(error):
                raise
            return {}

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Test metrics of the deployed network under the name "" and of the method's auxiliary logits under theirs."""
        self.student.eval()
        self.method.eval()
        self.deployed.eval()
        with autocast(self.protocol, self.data.device):
            return self.data.evaluate(self._predict())

    def _predict(self) -> Callable[[Tensor], Mapping[str, Tensor]]:
        fields = self.method.auxiliary_fields()
        if not fields:
            return lambda x: {"": self.deployed(x)}

        def predict(x: Tensor) -> Mapping[str, Tensor]:
            outputs = self.student(x, fields=fields)
            deployed = self.deployed.network if isinstance(self.deployed, LogitsOnly) else self.deployed
            plain = deployed in (self.student, self.student.module)
            return {"": outputs.logits if plain else self.deployed(x), **self.method.auxiliary_logits(outputs)}

        return predict

    def save(self) -> None:
        """Write everything that training needs to go on to the same bits."""
        with self._apart("save"):
            networks = {"student": self.student.state_dict(), "method": self.method.state_dict()}
        state = {
            "cell": self.cell.key,
            **networks,
            "optimizer": self.optimizer.state_dict(),
            "stream": self.stream.state,
            "scaler": self.scaler.state_dict(),
            "position": list(self.position),
            "records": self.records,
            "sums": self.sums,
            "counted": self.counted,
            "seconds": self.seconds,
        }
        if self.protocol.ema:
            state["averages"] = self.averages.values
        self.run.write("checkpoint.pt", to_bytes(state))
        self.saved_at = time.monotonic()

    def interrupt(self) -> None:
        """Save, and say in the store that training stopped here."""
        self.save()
        self.run.set_status("interrupted", epoch=max(self.position[0] - 1, 0), epochs=self.protocol.epochs)

    def restore(self) -> bool:
        """Continue from the last checkpoint; False where there is none.

        Raises:
            DiskError: the checkpoint cannot be read now.
            Damaged: it is not what was written, or does not fit; this object is no longer of use then.
        """
        path = self.run / "checkpoint.pt"
        if not path.is_file():
            return False
        state = read(path, self.data.device)
        try:
            if state.get("cell", self.cell.key) != self.cell.key:
                raise ValueError("it is another cell's")
            with self._apart("restore"):
                self.student.load_state_dict(state["student"])
                self.method.load_state_dict(state["method"])
            self.averages.load(state["averages"] if self.protocol.ema else ())
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state.get("scaler", {}))
            self.stream.state = [generator.cpu() for generator in state["stream"]]
            self.position = (state["position"][0], state["position"][1])
            self.records, self.seconds, self.counted = state["records"], float(state["seconds"]), int(state["counted"])
            self.sums = {name: torch.as_tensor(total) for name, total in state["sums"].items()}
            if [record["epoch"] for record in self.records] != list(range(self.first_epoch, self.position[0])):
                raise ValueError(f"it has the records of other epochs than those before {self.position[0]}")
        except Exception as error:  # any: the content may be of any form
            if out_of_memory(error):
                raise
            text = " ".join(str(error).split())
            raise Damaged(
                f"{path} was written by another version of the code ({type(error).__name__}: {text})"
            ) from None
        return True

    def finish(self) -> None:
        """Write the deployed network and mark the cell done."""
        with self.averages.in_place():
            with self._apart("finish"):
                remarks = [*self.method.remarks(), *self._start(), *self._size()]
                weights = on_cpu(self.deployed)
            finish(self.run, weights, self.records, self.protocol, remarks)

    def _start(self) -> list[str]:
        """What of a student that starts from ImageNet's weights does not, such as the classifier of other classes."""
        if not self.drawn:
            return []
        drawn = f"{counted(len(self.drawn), 'tensor')} ({first_of(self.drawn, 3)})"
        return [f"not of the ImageNet weights, but drawn: {drawn}"]

    def _size(self) -> list[str]:
        """How large the deployed network is, where it is another one than the plain student."""
        plain = self.data.build(self.cell.student).plain()
        deployed, usual = count(self.deployed.parameters()), count(plain.parameters())
        if deployed == usual:
            return []
        x = self.data.clean(torch.zeros(2, dtype=torch.long)).student().inputs  # statistics of a batch need two
        operations = [f"{macs(module, x) / 2e6:.1f} M" for module in (self.deployed, plain)]
        return [
            f"deployed with {deployed / 1e6:.3f} M parameters and {operations[0]} MACs, "
            f"the plain {self.cell.student} has {usual / 1e6:.3f} M and {operations[1]}"
        ]
