"""How well the classes can be read off inner features of trained students: pooled features and a linear classifier.

Supplement table 4 of letKD (arXiv 2309.02843) compares the input and the output of its intermediate layer so.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from kd_methods.views import TEACHER_TAIL

from ..common.weights import load_weights
from ..networks import NetworkView
from ..store.cell import Cell
from ..tasks import TaskData
from .restored import restored

BATCH = 250


def trained(cell: Cell, data: TaskData, weights: Path) -> NetworkView:
    """The network of a finished cell as it was trained, with the weights of its run's file."""
    network = restored(cell, data, load_weights(weights)).student.eval()
    assert isinstance(network, NetworkView)
    return network


def probed(network: NetworkView, plain: NetworkView) -> list[str]:
    """The output of the last stage's first block, and those of the modules inserted right behind it."""
    entry = network.layout.entry
    after = network.units[network.units.index(entry) + 1 :]
    behind = list(
        itertools.takewhile(lambda unit: unit not in plain.units and not unit.startswith(TEACHER_TAIL), after)
    )
    return [entry, *(unit for unit in behind if isinstance(network.shape(unit)[0], int))]


def accuracy(network: NetworkView, unit: str, data: TaskData) -> float:
    """Test accuracy (%) of linear discriminant analysis on the unit's globally averaged features."""
    train, labels = _features(network, unit, data, test=False)
    test, wanted = _features(network, unit, data, test=True)
    predicted = LinearDiscriminantAnalysis().fit(train.numpy(), labels.numpy()).predict(test.numpy())
    return 100 * float((predicted == wanted.numpy()).mean())


def _features(network: NetworkView, unit: str, data: TaskData, test: bool) -> tuple[Tensor, Tensor]:
    features, labels = [], []
    for indices in torch.arange(data.test_samples if test else data.info.num_samples).split(BATCH):
        batch = data.clean(indices, test).student()
        with torch.no_grad():
            x = network(batch.inputs, at=(unit,), fields=())[unit]
        features.append((x.mean((2, 3)) if x.dim() == 4 else x.mean(1) if x.dim() == 3 else x).cpu())
        labels.append(batch.labels.cpu())
    return torch.cat(features), torch.cat(labels)
