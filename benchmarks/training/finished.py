"""What a finished cell leaves: its deployed network's weights, its records, and the state done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..common.console import counted
from ..common.events import EpochRecord
from ..common.weights import to_bytes
from ..config.protocol import Protocol
from ..store.runs import Run, figures


def on_cpu(deployed: nn.Module) -> dict[str, Tensor]:
    """A deployed network's tensors as they are written."""
    return {key: value.detach().cpu().contiguous() for key, value in deployed.state_dict().items()}


def finish(
    run: Run, weights: dict[str, Tensor], records: list[EpochRecord], protocol: Protocol, remarks: Sequence[str]
) -> None:
    """Write a deployed network's weights and its metrics, and mark the run done."""
    run.write("student.pt", to_bytes(weights))
    run.set_metrics(records)
    run.set_status(
        "done",
        epoch=records[-1]["epoch"],
        epochs=protocol.epochs,
        **figures(records),
        remarks=[*_first_phases(records), *remarks, *run.changes],
    )


def _first_phases(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of a training is beside the epochs that all methods have."""
    phases = Counter(record["phase"] for record in records if record.get("phase"))
    return [f"also trained in a phase of its own before: {name}, {counted(n, 'epoch')}" for name, n in phases.items()]
