"""Any classifier of images as a Network: its own forward pass, cut at its blocks.

A pass that is resumed behind a unit is the network's own, whatever its family.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..contract import Layout
from ..errors import UserError, first_line
from .activations import never_negative, opaque, rectified, split
from .chain import Architecture, Chain
from .hooked import hooked
from .layers import evenly_spaced
from .modes import modes_kept
from .network import NetworkView
from .tracing import (
    SEQUENCES,
    Unit,
    are_alike,
    called_modules,
    classifier_name,
    is_composite,
    is_row,
    path_of,
    prefix_tokens,
    run_unit,
    stated_stages,
    stated_widths,
    traced_units,
    unit_shapes,
    with_writes,
)

STAGES = 4
"""Of a network whose layers are all alike, so many count as ends of stages, at equal shares of its depth."""


@dataclass(frozen=True)
class TracedChain:
    """The units of an architecture as they were traced; one serves all its instances."""

    units: tuple[Unit, ...]
    layout: Layout

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedChain:
        return self

    def of(self, module: nn.Module) -> Chain:
        """The chain of an instance of the architecture."""
        return Chain(tuple((unit.name, partial(run_unit, module, unit)) for unit in self.units), self.layout)

    def values(self, module: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """What every unit of an instance gives."""
        values = dict[str, Tensor]()
        for name, run in self.of(module).units:
            values[name] = x = run(x)
        return values


def view(module: nn.Module, input_shape: tuple[int, ...], name: str = "", units: Sequence[str] = ()) -> NetworkView:
    """Any classifier of images as a Network; ``module`` stays what it is, and its weights are the network's.

    An :class:`Architecture` has its chain; of others the forward pass is traced and cut at its blocks. Where it cannot
    be, or where other features are wanted, ``units`` names them, and hooks read them while the module runs. Nothing can
    then be put behind them or be run from them, as some methods want to.

    Args:
        module: maps images (B, C, H, W) to logits (B, K).
        input_shape: (C, H, W) of one image.
        name: what messages call the network; by default its class.
        units: dotted paths of the modules that end the stages, in order, such as ``["layer1", "layer2.1"]``; each gives
            a map (B, C, H, W) or tokens (B, L, D), or a tuple that begins with them.

    Raises:
        UserError: it does not run on such images, cannot be cut into units, or has no such units.
    """
    if isinstance(module, Architecture) and not units:
        return NetworkView(module, methodcaller("chain"), input_shape)
    name = name or type(module).__name__
    x = images_that_run(module, input_shape, name)
    chain = hooked(module, x, units, name) if units else trace(module, x, name)
    return NetworkView(module, chain.of, input_shape)


def images_that_run(module: nn.Module, shape: tuple[int, ...], name: str, otherwise: str = "use others") -> Tensor:
    """Two empty images of ``shape`` (C, H, W), on which the network has run.

    Raises:
        UserError: it does not run on them; the message ends with what to do ``otherwise``.
    """
    weight = next(module.parameters(), torch.zeros(()))
    x = torch.zeros(2, *shape, device=weight.device, dtype=weight.dtype)
    try:
        with modes_kept(module), torch.no_grad():
            module.eval()(x)
    except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError) as error:
        size = "x".join(map(str, shape[1:]))
        raise UserError(
            f"network '{name}' does not run on images of {size} ({first_line(error)}); {otherwise}"
        ) from None
    return x


def trace(module: nn.Module, x: Tensor, name: str) -> TracedChain:
    """The units of a network, and which of them carry what.

    What runs before the first block is the stem; a unit of the trunk ends with a block, or with an activation where
    there are no blocks; behind the last stage, what does nothing or completes a convolution joins the unit before.
    """
    counters = [(buffer, buffer.clone()) for buffer in module.buffers() if not buffer.is_floating_point()]
    try:
        return _traced(module, x, name)
    finally:
        for buffer, value in counters:  # it runs what counts the batches of timm's batch-norms
            buffer.copy_(value)


def _traced(module: nn.Module, x: Tensor, name: str) -> TracedChain:
    classifier = classifier_name(module, x)
    traced = traced_units(module, name, classifier)
    calls = [called_modules(module, unit) for unit in traced]
    shapes = unit_shapes(module, traced, x, name)
    first = _first_block(module, traced, calls)
    ends = _stage_ends(module, traced, calls, shapes, first)
    if not ends:
        raise UserError(f"the blocks of network '{name}' cannot be found")
    if why := _misread(module, ends, traced, shapes, x):
        raise UserError(f"network '{name}' cannot be cut into units ({why}); kd_methods.view takes units=")
    groups: list[list[int]] = [list(range(first)), []]
    for i in range(first, len(traced)):
        in_trunk = i <= ends[-1]
        joins = _does_nothing(calls[i]) or (len(groups[-1]) and _completes(traced[i], calls[i], calls[i - 1]))
        if not in_trunk and not joins:
            groups.append([])
        groups[-1].append(i)
        if i < ends[-1] and (i in ends or _ends_unit(module, calls[i])):
            groups.append([])

    units: list[Unit] = []
    shape_of: dict[str, tuple[int, ...]] = {}
    preact_of: dict[str, str] = {}
    non_negative = set[str]()
    for group in filter(None, groups):
        last = group[-1]
        named = min((i for i in group if i in ends), default=last if last <= ends[-1] else group[0])
        label = "stem" if last < first else traced[named].name
        unit = replace(functools.reduce(Unit.then, (traced[i] for i in group)), name=label)
        if rectified(module, unit.nodes[0][-1]):
            non_negative.add(label)
        units.append(unit)
        if set(group) & set(ends):
            idle = len(units) > 1 and all(_does_nothing(calls[i]) for i in group)
            place = -2 if idle else -1  # the unit that may end in a ReLU
            if halves := split(module, units[place]):
                units[place:] = [*halves, *units[place:][1:]]
                preact_of[label] = halves[0].name
        shape_of[label] = shape_of[preact_of.get(label, label)] = shapes[last]
    stages = [next(u.name for u in units if u.name == traced[i].name) for i in ends]
    classifies = classifier in called_modules(module, units[-1]).values()
    if len(shape_of[units[-2].name]) != 1 or not classifies:
        raise UserError(f"network '{name}' has no one vector (B, D) before its classifier")
    layout = _layout(module, units, stages, shape_of, preact_of, frozenset(non_negative))
    layout = replace(layout, prefix_tokens=_prefix(module, [shape_of[stage] for stage in stages], x))
    if len({unit.name for unit in units}) < len(units):
        raise UserError(f"network '{name}' runs a layer in several places, by which its units cannot be told apart")
    traced_chain = TracedChain(tuple(with_writes(module, units, x)), layout)
    _check_alike(module, traced_chain, x, name)
    unseen = {unit.name for unit in units if unit.name in layout.units(("stages", "blocks")) and opaque(module, unit)}
    if unseen:
        non_negative |= unseen & never_negative(module, x, traced_chain.values)
    return replace(traced_chain, layout=replace(layout, rectified=frozenset(non_negative)))


def _misread(module: nn.Module, ends: list[int], traced: list[Unit], shapes: list[tuple[int, ...]], x: Tensor) -> str:
    """Why the stages are not what timm says of the network; empty where they are."""
    stated = stated_stages(module)
    reductions = {info["num_chs"]: info.get("reduction", 0) for info in stated}
    for i in ends:
        reduction = reductions.get(shapes[i][0], 0) if traced[i].swapped[1] else 0
        # Else the places are in another order than a map's.
        if reduction and abs(shapes[i][1] * reduction - x.shape[-2]) > reduction:
            return "its stages are neither maps nor tokens"
    return f"of its {len(stated)} stages one is found" if len(ends) == 1 and len(stated) > 2 else ""


def _prefix(module: nn.Module, stages: list[tuple[int, ...]], x: Tensor) -> int | None:
    """Tokens of every stage that stand for no patch; None where stages differ in that."""
    numbers = {prefix_tokens(module, shape, x) for shape in stages if len(shape) == 2}
    return numbers.pop() if len(numbers) == 1 else None


def _check_alike(module: nn.Module, chain: TracedChain, x: Tensor, name: str) -> None:
    """Whether the units give what the module gives, from the same parameters.

    Raises:
        UserError: they do not, as where a part runs under ``torch.no_grad`` or autocast: tracing leaves such out.
    """
    images = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    with modes_kept(module), torch.enable_grad():
        module.eval()
        whole, units = module(images), next(reversed(chain.values(module, images).values()))
    whole = getattr(whole, "logits", whole)
    near = torch.allclose(whole, units, rtol=0, atol=1e-5 * float(whole.detach().abs().max()))
    if not near or leaves(whole) != leaves(units):
        raise UserError(
            f"network '{name}' does more in its forward pass than its units, such as a part under torch.no_grad or "
            "autocast; it cannot be cut (kd_methods.view takes units=)"
        )


def leaves(x: Tensor) -> set[int]:
    """Ids of the leaf tensors that a backward pass from ``x`` would reach."""
    reached, waiting, seen = set[int](), [x.grad_fn], set[Any]()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return reached


def _layout(
    module: nn.Module,
    units: list[Unit],
    stages: list[str],
    shapes: Mapping[str, tuple[int, ...]],
    preacts: Mapping[str, str],
    rectified: frozenset[str],
) -> Layout:
    names = [unit.name for unit in units]
    after = names.index(stages[-1]) + 1
    # Up to the pooling; what may follow it with dimensions of size 1 is no map any more.
    head = list(
        itertools.takewhile(
            lambda unit: (
                _size(shapes[unit.name]) == _size(shapes[stages[-1]])
                and not any(_pools(module, node) for node in unit.nodes[0])
            ),
            units[after:],
        )
    )
    maps = [*names[:after], *(unit.name for unit in head)]
    weighted = [
        unit.name
        for unit in head
        if any(isinstance(child, nn.Conv2d | nn.Linear) for child in called_modules(module, unit))
    ]
    trunk = [unit for unit in maps if unit not in preacts.values()]  # they are no layers of their own
    return Layout(
        stem=names[0],
        stages=tuple(stages),
        preacts=tuple(preacts.get(stage, stage) for stage in stages),
        blocks=(*stages[:-1], (weighted or stages)[-1]),
        last_map=maps[-1],
        pooled=names[-2],
        rectified=rectified,
        layers=(*trunk, names[-2]),
    )


def _first_block(module: nn.Module, traced: list[Unit], calls: list[dict[nn.Module, str]]) -> int:
    """The first that is a block of a row, or of a stage that timm names, or a layer of a long row; else 0."""

    def rows(child: nn.Module, name: str) -> bool:
        parent = name.rpartition(".")[0]
        return bool(parent) and is_row(module.get_submodule(parent))

    stages = {info["module"] for info in stated_stages(module)[-STAGES:]}
    blocks = [
        i
        for i, called in enumerate(calls)
        if any(is_composite(child) and (rows(child, name) or name in stages) for child, name in called.items())
    ]
    layers = [i for i, called in enumerate(calls) if any(rows(*call) for call in called.items())]
    return next(iter(blocks or layers), 0)


def _ends_unit(module: nn.Module, called: Mapping[nn.Module, str]) -> bool:
    """Whether a traced unit ends with a block of a row, or with an activation."""

    def in_sequence(name: str) -> bool:
        parent = module.get_submodule(name.rpartition(".")[0])
        return isinstance(parent, SEQUENCES) or are_alike(list(parent.children()))

    blocks = any(is_composite(child) and in_sequence(name) for child, name in called.items())
    return blocks or any(map(_activates, called))


def _activates(child: nn.Module) -> bool:
    return type(child).__module__ == "torch.nn.modules.activation"


def _does_nothing(called: Mapping[nn.Module, str]) -> bool:
    return bool(called) and all(isinstance(child, nn.Identity | nn.Dropout) for child in called)


def _completes(unit: Unit, called: Mapping[nn.Module, str], before: Mapping[nn.Module, str]) -> bool:
    """Whether a traced unit is the normalisation or the activation of the convolution, or linear map, before it."""
    if len(unit.nodes[0]) != len(called):
        return False
    normalises = all(_activates(child) or _normalises(child) for child in called)
    return normalises and any(isinstance(child, nn.Conv2d | nn.Linear) or _normalises(child) for child in before)


def _normalises(child: nn.Module) -> bool:
    return "Norm" in type(child).__name__


def _stage_ends(
    module: nn.Module,
    traced: list[Unit],
    calls: list[dict[nn.Module, str]],
    shapes: list[tuple[int, ...]],
    first: int,
) -> list[int]:
    """Traced units that end a stage: timm's own feature information, else the last block of each resolution."""
    ends = list(stated_widths(module, traced, first))
    if not ends:
        blocks = [i for i in range(first, len(traced)) if _ends_unit(module, calls[i]) and len(shapes[i]) > 1]
        sizes = [_size(shapes[i]) for i in blocks]
        alike = len(set(sizes)) == 1
        later = [*sizes[1:], ()]
        ends = [i for i, size, after in zip(blocks, sizes, later, strict=False) if alike or size != after]
    if len(ends) > STAGES and len({_size(shapes[i]) for i in ends}) == 1:
        return [ends[i] for i in evenly_spaced(STAGES, len(ends))]
    return ends[-STAGES:]


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of a map, number of tokens; of a vector nothing."""
    return shape[1:] if len(shape) == 3 else shape[:-1]


def _pools(module: nn.Module, node: fx.Node) -> bool:
    called = type(module.get_submodule(path_of(node))) if node.op == "call_module" else node.target
    return "pool" in getattr(called, "__name__", "").lower()
