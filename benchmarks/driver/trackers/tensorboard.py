"""TensorBoard through torch's own writer (extra [track]): ``tensorboard --logdir results/tensorboard``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kd_methods.errors import UserError

from ...store.cell import Cell
from .tracker import Tracker, scalars, settings


class TensorBoard(Tracker):
    """A folder of events for each cell: curves over epochs, settings as a text and, once it has ended, as HParams."""

    name = "tensorboard"

    def __init__(self, cell: Cell, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._settings = settings(cell)
        self._metrics: dict[str, float] = {}
        self._writer = SummaryWriter(str(folder / f"{cell.label.replace('/', '_')}_{cell.key[:8]}"))
        rows = "\n".join(f"| {name} | {value} |" for name, value in self._settings.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")
        self._writer.flush()

    @classmethod
    def check(cls) -> None:
        if find_spec("tensorboard") is None:
            raise UserError("--track tensorboard: TensorBoard is not installed: pip install '.[track]'")

    def epoch(self, record: Mapping[str, Any]) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record["epoch"])
        self._metrics = {f"last/{name}": value for name, value in record["metrics"].items()}
        self._writer.flush()

    def end(self, state: str) -> None:
        self._writer.add_hparams({**self._settings, "state": state}, self._metrics, run_name=".")
        self._writer.close()


TRACKERS = (TensorBoard,)
