"""Where networks of a kind of name come from."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kd_methods.contract import Modality, Network
from kd_methods.errors import UserError

from ..common.network_names import network_title


class NetworkSource:
    """Resolves names to networks.

    name       what it is called; of a library that ``publishes`` weights also what stands before their names
    modality   what its networks read
    publishes  whether it has weights for ImageNet that can be teachers
    """

    name: ClassVar[str]
    modality: ClassVar[Modality]
    publishes: ClassVar[bool] = False

    def names(self) -> list[str]:
        """Those that can be listed."""
        return []

    def has(self, name: str) -> bool:
        """Whether a name is one of this source's, by its form or because it is listed."""
        return name in self.names()

    def check(self, name: str) -> None:
        """Raise UserError where a name has the right form and there is no such network."""

    def version(self, name: str) -> int:
        """Raised when a network is mended; part of the cells that use it."""
        return 1

    def title(self, name: str) -> str:
        """A network's name as tables print it."""
        return network_title(name)

    def weights_digest(self, name: str) -> str:
        """What the weights are that a network starts from; empty where they are random."""
        return ""

    def published(self, weights: str) -> dict[str, Any]:
        """What is known of weights ``NETWORK.TAG`` for ImageNet: fields of :class:`benchmarks.teachers.zoo.Teacher`.

        Raises:
            UserError: there is no such network, or there are no such weights of it.
        """
        raise NotImplementedError

    def downloaded(self, weights: str) -> dict[str, Tensor]:
        """Weights whose address in ``published`` is ``SOURCE:WEIGHTS``, not that of a file.

        Raises:
            OSError: they cannot be had.
        """
        raise NotImplementedError

    def positions(self, name: str) -> int | None:
        """How many tokens of a text a network can read; None where it does not number them, or reads no texts."""
        return None

    def build(self, name: str, num_classes: int, input_shape: tuple[int, ...], vocabulary: int) -> Any:
        """See :func:`benchmarks.networks.build_network`."""
        raise NotImplementedError

    def with_drop_path(
        self, name: str, num_classes: int, input_shape: tuple[int, ...], vocabulary: int, rate: float
    ) -> Any:
        """A network that in training leaves out branches of its blocks at random (stochastic depth).

        Raises:
            UserError: it has no stochastic depth, and the rate is not 0.
        """
        if rate:
            raise UserError(f"network '{name}' has no stochastic depth (drop_path), which networks of timm can have")
        return self.build(name, num_classes, input_shape, vocabulary)

    def init_from(self, student: Network, teacher: Network, which: str) -> None:
        """Start a student from a teacher of the same source.

        Raises:
            UserError: networks that cannot start so.
        """
        raise UserError(f"init '{which}': text encoders start from first, last or spread layers, detectors from heads")
