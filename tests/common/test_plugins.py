"""Plugins leave the process as it was, and are the same ones in every process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import networks
from benchmarks.common import plugins
from benchmarks.common.registry import Registry
from kd_methods.errors import UserError

PLUGIN = """
import torch
from benchmarks.networks import register_network

{line}
register_network("{name}", lambda num_classes: torch.nn.Flatten())
"""


def written(path: Path, line: str = "") -> Path:
    path.write_text(PLUGIN.format(name=path.stem, line=line))
    return path


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Empties the registry of networks as in a process that has loaded no plugin yet."""
    assert networks.register_network

    def empty() -> None:
        monkeypatch.setattr(Registry.every["network"], "_registered", {})

    empty()
    return empty


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("torch.set_default_dtype(torch.float64)", "default dtype"),
        ("torch.set_num_threads(3); torch.backends.mkldnn.enabled = False", "number of threads, torch.backends.mkldnn"),
    ],
)
def test_settings_of_the_process_are_put_back(anew: Callable[[], None], tmp_path: Path, line: str, words: str) -> None:
    """The cells of other methods and networks are computed under them, and have the same keys with and without."""
    said: list[str] = []
    assert plugins.load([written(tmp_path / "plain_one.py", line)], said.append).keys() == {"network:plain_one"}
    assert len(said) == 1 and words in said[0] and "put back" in said[0]
    assert torch.get_default_dtype() == torch.float32 and torch.get_num_threads() == 1
    assert torch.backends.mkldnn.enabled


def test_a_file_that_is_edited_while_a_run_goes_on_is_refused_by_its_workers(
    anew: Callable[[], None], tmp_path: Path
) -> None:
    """What they would compute has the key of the file as it was."""
    file = written(tmp_path / "plain_two.py")
    planned = plugins.load([file]) | {"network:hf:somewhere": "a checkpoint's digest"}
    anew()
    plugins.load_again([file], planned)
    anew()
    written(file, "print()")
    with pytest.raises(UserError, match="the plugin of network:plain_two has changed since the run began"):
        plugins.load_again([file], planned)
