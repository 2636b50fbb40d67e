"""The Network view of a module whose chain of units is known."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, nn

from ..contract import FIELDS, MAPS, Network, Outputs, Tokens
from ..contract.patches import as_tokens, map_shape
from ..errors import UserError, unknown
from .chain import Chain
from .folding import fold_batch_norms
from .modes import modes_kept
from .teacher_tail import WithTeacherTail


class NetworkView(Network):
    """See :class:`kd_methods.contract.Network`.

    Args:
        module: the plain architecture; calling it gives logits, its state dict has its own library's keys.
        chain: gives the chain of ``module`` or of a copy of it.
        input_shape: shape of one input, (C, H, W) or (3, L), from which feature shapes are known without data.
        inserted: modules added by :meth:`insert`, as (unit, name, module).

    ``compiles``: forward passes (not those that are resumed) of so many samples run compiled by torch, 0 for none.
    They keep the outputs of all units, so that what is asked for changes neither their code nor their bits, and
    networks of one architecture share it.
    """

    def __init__(
        self,
        module: nn.Module,
        chain: Callable[[nn.Module], Chain],
        input_shape: tuple[int, ...],
        inserted: tuple[tuple[str, str, nn.Module], ...] = (),
    ) -> None:
        super().__init__()
        self.module = module
        # Checkpoints have this name in their keys.
        self.parts = nn.ModuleDict({name: added for _, name, added in inserted})
        self.input_shape = tuple(input_shape)
        self._chain_of = chain
        self._inserted = inserted
        plain = chain(module)
        units, layout = list(plain.units), plain.layout
        for unit, name, added in inserted:
            position = [known for known, _ in units].index(unit)
            units.insert(position + 1, (name, added))
            if layout.last_map == unit:
                layout = replace(layout, last_map=name)
        self.layout = layout
        self._units = tuple(units)
        self._position = {name: i for i, (name, _) in enumerate(units)}
        if len(self._position) < len(units):
            raise ValueError(f"{type(module).__name__} has several units of one name")
        self._taps = plain.taps
        self._alone = plain.alone and not inserted and layout.modality != "text"
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._folded: NetworkView | None = None
        self.compiles = 0
        self._compiled: tuple[weakref.ref[NetworkView], Callable[..., Any]] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NetworkView:
        self._folded = None  # a copy that would stay where it is
        return super()._apply(fn, recurse)

    @property
    def units(self) -> tuple[str, ...]:
        """Names of all units, in the order in which they run."""
        return tuple(self._position)

    def forward(self, x: Tensor, at: Iterable[str] = (), fields: Iterable[str] = FIELDS) -> Outputs:
        wanted = self.layout.units(fields).union(at)
        for name in wanted:
            if name not in self._taps:
                self._index(name)
        if self.compiles and len(x) == self.compiles and not wanted & self._taps.keys():
            logits, every = self._compiled_run()(x, frozenset(self._position))
            return Outputs(logits, {name: every[name] for name in wanted}, self.layout)
        logits, features = self._run(x, wanted)
        return Outputs(logits, features, self.layout)

    def _compiled_run(self) -> Callable[..., Any]:
        """The pass over the units, compiled by torch; of a copy of this network its own."""
        if self._compiled is None or self._compiled[0]() is not self:
            self._compiled = weakref.ref(self), torch.compile(self._in_turn, dynamic=False)
        return self._compiled[1]

    def _in_turn(self, x: Any, wanted: frozenset[str]) -> tuple[Any, dict[str, Any]]:
        features: dict[str, Any] = {}
        for name, run in self._units:
            x = run(x)
            if name in wanted:
                features[name] = x
        return x, features

    def _run(self, x: Any, wanted: Collection[str]) -> tuple[Any, dict[str, Any]]:
        """The logits, and the outputs of the units and taps that are wanted."""
        tapped: dict[str, Any] = {}
        with ExitStack() as hooks:
            for name in wanted:
                if name in self._taps:
                    keep = partial(_keep, tapped, name)
                    hooks.callback(self._taps[name].register_forward_hook(keep).remove)
            x, features = self._in_turn(x, frozenset(wanted))
        return x, {**features, **tapped}

    def resume(self, unit: str, feature: Any, until: str | None = None) -> Any:
        start, prefix = self._index(unit) + 1, self.layout.prefix_tokens
        if prefix is not None and feature.dim() == 4 and len(self.shape(unit)) == 2:
            feature = as_tokens(feature, prefix)
        stop = len(self._units) if until is None else self._index(until) + 1
        for _, run in self._units[start:stop]:
            feature = run(feature)
        return feature

    def insert(self, unit: str, name: str, module: nn.Module) -> NetworkView:
        self._index(unit)
        if name in self._position:
            raise UserError(f"the network has a unit called '{name}' already")
        return NetworkView(self.module, self._chain_of, self.input_shape, (*self._inserted, (unit, name, module)))

    def with_teacher_tail(self, unit: str, name: str, module: nn.Module, teacher: Network, entry: str) -> NetworkView:
        assert isinstance(teacher, NetworkView)
        if self._inserted or teacher._inserted:
            raise ValueError("a network takes its teacher's tail before modules are inserted")
        self._index(unit)
        teacher._index(entry)
        joint = WithTeacherTail(self._only(until=unit), unit, name, module, teacher._only(after=entry), entry)
        return NetworkView(joint, methodcaller("chain"), self.input_shape)

    def used(self, after: str = "", until: str = "") -> set[str]:
        """Names of the parameters of ``module`` that are used after a unit, or up to one."""
        copied = copy.deepcopy(self).requires_grad_()
        with torch.enable_grad():
            copied.eval()
            if after:
                entry = torch.zeros(2, *copied.shape(after)).to(next(copied.module.parameters()))
                end = copied.resume(after, entry)
            else:
                end = copied._run(copied.example(), {until})[1][until]
            # A layer's parameter may be another one's, too.
            names, parameters = zip(*copied.module.named_parameters(remove_duplicate=False), strict=True)
            gradients = torch.autograd.grad(end.sum(), parameters, allow_unused=True)
        return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}

    def _only(self, after: str = "", until: str = "") -> NetworkView:
        """A copy without the parameters that are not used after a unit, or up to one."""
        copied, used = copy.deepcopy(self), self.used(after, until)
        for name, module in list(copied.module.named_modules()):
            parameters = dict(module.named_parameters(recurse=False))
            unused = [key for key in parameters if f"{name}.{key}".removeprefix(".") not in used]
            if not parameters or len(unused) < len(parameters) or list(module.children()):
                for key in unused:
                    setattr(module, key, None)
            else:
                copied.module.set_submodule(name, nn.Identity())
        return NetworkView(copied.module, self._chain_of, self.input_shape)

    def fold_batch_norms(self) -> NetworkView:
        if self._folded is None:
            # Not a submodule: the copy must not show up in this network's parameters or state dict.
            object.__setattr__(self, "_folded", self if self._frozen_without_norms() else self._fold())
        assert self._folded is not None
        self._folded.compiles = self.compiles
        return self._folded

    def _frozen_without_norms(self) -> bool:
        """Whether there is nothing to fold and nothing to freeze, so that no copy is needed."""
        frozen = not self.training and not any(parameter.requires_grad for parameter in self.parameters())
        return frozen and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules())

    def _fold(self) -> NetworkView:
        inserted = tuple((unit, name, fold_batch_norms(module)) for unit, name, module in self._inserted)
        copy = NetworkView(fold_batch_norms(self.module, self._chain_of), self._chain_of, self.input_shape, inserted)
        return copy.requires_grad_(False).eval()

    def plain(self) -> nn.Module:
        """A module that maps inputs to logits: the plain architecture, or a wrapper that runs more than that."""
        return self.module if self._alone else LogitsOnly(self)

    def example(self, batch: int = 2) -> Tensor:
        """Inputs of no meaning, in the right form."""
        weight = next(self.module.parameters(), torch.zeros(()))
        if self.layout.modality == "text":
            return example_text(batch, self.input_shape[-1], weight.device)
        return torch.zeros(batch, *self.input_shape, device=weight.device, dtype=weight.dtype)

    def shape(self, unit: str) -> tuple[int, ...]:
        if unit not in self._taps:
            self._index(unit)
        if not self._shapes:
            with modes_kept(self), torch.no_grad():
                self.eval()
                _, features = self._run(self.example(), {*self._position, *self._taps})
            self._shapes = {name: _shape(x) for name, x in features.items()}
        return self._shapes[unit]

    def shapes(self, name: str) -> tuple[tuple[int, ...], ...]:
        value, prefix = getattr(self.layout, name), self.layout.prefix_tokens
        shapes = tuple(self.shape(unit) for unit in ((value,) if isinstance(value, str) else value))
        if prefix is None or name not in MAPS:
            return shapes
        return tuple(map_shape(shape, prefix) if len(shape) == 2 else shape for shape in shapes)

    def _index(self, unit: str) -> int:
        if unit in self._taps:
            name = type(self.module).__name__
            raise UserError(f"of network '{name}' the unit '{unit}' is only read; nothing goes on from it")
        if unit not in self._position:
            raise unknown("unit", unit, self._position)
        return self._position[unit]


def example_text(batch: int, length: int, device: torch.device) -> Tensor:
    """(B, 3, L) ids, mask and segments of no meaning, without padding."""
    x = torch.zeros(batch, 3, length, device=device, dtype=torch.long)
    x[:, 1] = 1
    return x


def _keep(features: dict[str, Any], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    # Of transformers' blocks the states are first. A copy: what follows may write into it.
    features[name] = (output if isinstance(output, Tensor) else output[0]).clone()


def _shape(x: Any) -> tuple[Any, ...]:
    """Without the batch dimension; of a tuple the shapes of its members."""
    if isinstance(x, Tokens):
        return tuple(x.hidden.shape[1:])
    return tuple(map(_shape, x)) if isinstance(x, tuple) else tuple(x.shape[1:])


INSERTED = "parts."
"""Before the keys of inserted modules in files."""


class LogitsOnly(nn.Module):
    """A network with inserted modules, called like any plain architecture.

    Its state has the keys of the plain architecture and of the inserted modules, without the wrappers' own prefixes.
    """

    def __init__(self, network: NetworkView) -> None:
        super().__init__()
        self.network = network
        self.register_load_state_dict_pre_hook(_with_own_prefixes)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, fields=()).logits

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        state = {} if destination is None else destination
        for module, inner in ((self.network.module, prefix), (self.network.parts, f"{prefix}{INSERTED}")):
            state.update(module.state_dict(prefix=inner, keep_vars=keep_vars))
        return state


def _with_own_prefixes(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        inner = key.removeprefix(prefix)
        state[f"{prefix}network.{inner if inner.startswith(INSERTED) else f'module.{inner}'}"] = state.pop(key)
