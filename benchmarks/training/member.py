"""One cell in training: its student, method, optimiser and random stream, and the state that resumes it exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import kd_methods
from kd_methods.contract import Batch, Needs, Outputs, Progress

from ..cell import Cell
from ..networks import NetworkView
from ..spec import Protocol
from ..store import Run
from ..tasks import TaskData
from ..weights import read, to_bytes
from .seeding import Stream, derive


class Diverged(Exception):
    """A loss term stopped being finite."""


class Member:
    """A cell of a group while it trains.

    Args:
        cell: what is trained.
        protocol: its recipe.
        data: the task's data on the device.
        teacher: the frozen teacher as the methods get it (not folded), or None.
        run: where its results go.
    """

    def __init__(self, cell: Cell, protocol: Protocol, data: TaskData, teacher: NetworkView | None, run: Run) -> None:
        self.cell, self.protocol, self.data, self.run = cell, protocol, data, run
        device = data.device
        self.stream = Stream(cell.seed, device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive(cell.seed, "student"))
            student = data.build(cell.student)
            torch.manual_seed(derive(cell.seed, "method"))
            self.method = kd_methods.build(
                cell.method, student, teacher if cell.teacher else None, data.info, **cell.settings
            )
            self.method.to(device).to(memory_format=torch.channels_last)
            self.student = self.method.adapt(student).to(device)
        self._check_needs(teacher)
        self.deployed = self.method.deployed(self.student)
        optimizer = protocol.optimizer
        self.optimizer = torch.optim.SGD(
            list(dict.fromkeys([*self.student.parameters(), *self.method.parameters()])),
            lr=cell.lr,
            momentum=optimizer.momentum,
            nesterov=optimizer.nesterov,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        # The fused kernel takes no mixture of parameters that have had a gradient and of those that get their first one
        # later (a stone that was not drawn); a momentum of zero is the same as none.
        if optimizer.momentum:
            for parameter in self.optimizer.param_groups[0]["params"]:
                self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.position = (1, 0)  # the epoch and step that come next
        self.records: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.sums: dict[str, Tensor] = {}
        self.saved_at = time.monotonic()

    @property
    def needs(self) -> Needs:
        return self.method.needs

    def _check_needs(self, teacher: NetworkView | None) -> None:
        """Asked for before training, so that a wrong name is this cell's failure and not the group's."""
        needs = self.needs
        for network, fields, units in (
            (self.student, needs.student, needs.student_units),
            (teacher, tuple(name for name in needs.teacher if name != "logits"), needs.teacher_units),
        ):
            if network is not None:
                for unit in (*network.layout.units(fields), *units):
                    network.shape(unit)

    def start_epoch(self, epoch: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.cell.lr * self.protocol.decayed(epoch)
        self.student.train()
        self.method.train()

    def step(self, batch: Batch, teacher: Outputs | None, position: tuple[int, int], progress: Progress) -> None:
        """One optimisation step: forward, losses, backward, update.

        The seconds counted are the host's: on a GPU, the time to launch the step.
        """
        started = time.perf_counter()
        if len(batch.labels) >= self.needs.min_batch:
            with self.stream.active():
                outputs = self.student(batch.inputs, at=self.needs.student_units, fields=self.needs.student)
                losses = self.method.losses(outputs, teacher, batch, progress)
                self.optimizer.zero_grad(set_to_none=True)
                losses.total().backward()
                self.optimizer.step()
            for name, term in losses.terms().items():
                self.sums[name] = self.sums.get(name, 0) + term.detach().double()
        self.position = (position[0], position[1] + 1)
        self.seconds += time.perf_counter() - started

    def check_finite(self) -> None:
        """Raise Diverged, naming the term, if any loss since the epoch's start was not finite."""
        for name, total in self.sums.items():
            if not math.isfinite(float(total)):
                raise Diverged(f"loss term '{name}' is {float(total)} in epoch {self.position[0]}")

    def end_epoch(self, epoch: int, steps: int) -> dict[str, Any]:
        """Evaluate, record, save. Returns the epoch's record."""
        self.check_finite()
        evaluated = self.evaluate()
        self.records.append(
            {
                "epoch": epoch,
                "lr": self.optimizer.param_groups[0]["lr"],
                "metrics": evaluated.pop(""),
                "probes": evaluated,
                "losses": {name: float(total) / steps for name, total in self.sums.items()},
                "seconds": round(self.seconds, 3),
            }
        )
        self.seconds, self.sums = 0.0, {}
        self.position = (epoch + 1, 0)
        self.save()
        self.run.set_metrics(self.records)
        self.run.set_status("running", epoch=epoch, epochs=self.protocol.epochs)
        return self.records[-1]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Test metrics of the deployed network under the name "" and of the method's probes under theirs."""
        self.student.eval()
        self.method.eval()
        self.deployed.eval()
        return self.data.evaluate(self._predict())

    def _predict(self) -> Callable[[Tensor], Mapping[str, Tensor]]:
        fields = self.method.probe_fields()
        if not fields:
            return lambda x: {"": self.deployed(x)}

        def predict(x: Tensor) -> Mapping[str, Tensor]:
            outputs = self.student(x, fields=fields)
            plain = self.deployed is self.student.module
            return {"": outputs.logits if plain else self.deployed(x), **self.method.probes(outputs)}

        return predict

    def save(self) -> None:
        """Write everything that training needs to go on to the same bits."""
        state = {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stream": self.stream.state,
            "position": list(self.position),
            "records": self.records,
            "sums": self.sums,
            "seconds": self.seconds,
        }
        self.run.write("checkpoint.pt", to_bytes(state))
        self.saved_at = time.monotonic()

    def restore(self) -> bool:
        """Continue from the last checkpoint; False where there is none."""
        path = self.run / "checkpoint.pt"
        if not path.is_file():
            return False
        state = read(path, self.data.device)
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stream.state = [part.cpu() for part in state["stream"]]
        self.position = (state["position"][0], state["position"][1])
        self.records, self.sums, self.seconds = state["records"], state["sums"], state["seconds"]
        return True

    def finish(self) -> None:
        """Write the deployed network and mark the cell done."""
        weights = {key: value.detach().cpu().contiguous() for key, value in self.deployed.state_dict().items()}
        self.run.write("student.pt", to_bytes(weights))
        self.run.set_metrics(self.records)
        last = self.records[-1]
        best = {name: max(record["metrics"][name] for record in self.records) for name in last["metrics"]}
        self.run.set_status("done", epoch=last["epoch"], epochs=self.protocol.epochs, last=last["metrics"], best=best)
