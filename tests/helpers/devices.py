"""A GPU that is not there: which tensors lie on it, and for which operations the host would wait for it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from helpers.method_setup import Setup
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from kd_methods.contract import Method, Network

GPU = torch.device("cuda", 0)
WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "repeat_interleave"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive"),
    *("_linalg_svd", "_linalg_eigh", "_linalg_eigvals", "linalg_eig", "_linalg_check_errors"),
}
"""Operations whose result is a value, or has a shape, that the host has to know; the last ones look for errors."""


class Waits(TorchDispatchMode):
    """Counts operations for which the host would wait for a GPU, were the tensors there."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _name(func)
        masks = [leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, Tensor) and leaf.dtype == torch.bool]
        self.counts[name] += name in WAITING or (name == "index" and bool(masks))
        return func(*args, **(kwargs or {}))


class FakeGPU(TorchDispatchMode):
    """Inside, tensors on :data:`GPU` have shapes and no values; what is on the CPU is computed.

    ``waits`` says how often which operation would have waited: those that tell the host something of what lies on the
    GPU, and copies from one device to the other. An operation on tensors of both is torch's own error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mode, self.waits = FakeTensorMode(allow_non_fake_inputs=True), Counter[str]()

    def __enter__(self) -> FakeGPU:
        self.mode.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.mode.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, _name(func)
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(leaf, FakeTensor) or leaf == GPU or leaf == torch.device("cuda") for leaf in leaves):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        try:
            result = func(*args, **kwargs)
            self.waits[name] += name in WAITING
        except (DataDependentOutputException, DynamicOutputShapeException):
            self.waits[name] += 1
            return self._of_ones(func, args, kwargs)
        devices = {leaf.device.type for leaf in (*leaves, *tree_leaves(result)) if isinstance(leaf, Tensor)}
        self.waits["a copy between devices"] += name in ("_to_copy", "copy_") and len(devices) > 1
        return result

    def _of_ones(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the operation would give if all values were one."""
        with unset_fake_temporarily():
            ones = tree_map_only(FakeTensor, lambda x: torch.ones(x.shape, dtype=x.dtype), (args, kwargs))
            result = func(*ones[0], **ones[1])
        return tree_map_only(Tensor, self.tensor, result)

    def tensor(self, value: Tensor) -> Tensor:
        """A tensor of that shape and type on the GPU."""
        if isinstance(value, FakeTensor):
            return value
        with self.mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)

    def moved(self, setup: Setup) -> Setup:
        """A method on its pair and its batch, with all that is registered on the GPU."""
        setup = copy.deepcopy(setup)
        for module in (setup.method, setup.student, *_networks(setup.method)):
            self._move(module)
        tensors = {name: self.tensor(value) for name, value in vars(setup.batch).items() if isinstance(value, Tensor)}
        setup.batch = replace(setup.batch, **tensors)
        return setup

    def _move(self, module: nn.Module) -> None:
        for child in module.modules():
            for name, parameter in child._parameters.items():
                if parameter is not None and not isinstance(parameter, FakeTensor):
                    child._parameters[name] = nn.Parameter(self.tensor(parameter.detach()), parameter.requires_grad)
            for name, buffer in child._buffers.items():
                child._buffers[name] = buffer if buffer is None else self.tensor(buffer)


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _networks(method: Method) -> Iterator[Network]:
    """The networks that a method, or each that it combines, knows, teachers also as they are folded."""
    for child in method.modules():
        if isinstance(child, Method):
            student, teacher = child._networks
            yield student
            if teacher is not None:
                yield from (teacher, teacher.fold_batch_norms())
