"""A forward pass, traced as far as its blocks and cut wherever nothing but one tensor goes on."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from ..errors import UserError, first_line
from .modes import modes_kept

ROW = 6
"""Of a plain sequence with more layers each is looked at by itself."""

SEQUENCES = (nn.Sequential, nn.ModuleList)

_MODES = (False, True)
"""Evaluation and training: what is done may differ."""


@dataclass(frozen=True)
class Unit:
    """Nodes of a traced pass that lead from one tensor to one tensor, in evaluation and in training.

    ``swapped``: whether input and output are (B, H, W, C) within. ``writes``: it changes its input in place.
    """

    name: str
    entry: tuple[fx.Node, fx.Node]
    nodes: tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]
    swapped: tuple[bool, bool] = (False, False)
    writes: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Unit:
        return self  # nodes name what they call; they hold nothing of a network

    def then(self, other: Unit) -> Unit:
        """Both, one after the other, as one unit."""
        nodes = (self.nodes[0] + other.nodes[0], self.nodes[1] + other.nodes[1])
        return replace(self, nodes=nodes, swapped=(self.swapped[0], other.swapped[1]))


def run_unit(module: nn.Module, unit: Unit, x: Tensor) -> Tensor:
    """One unit on its input; features that are (B, H, W, C) within are (B, C, H, W) outside."""
    mode = module.training
    x = x.clone() if unit.writes else x
    values: dict[fx.Node, Any] = {unit.entry[mode]: x.permute(0, 2, 3, 1) if unit.swapped[0] else x}

    def value(node: fx.Node) -> Any:
        # A parameter may be used by several units.
        return functools.reduce(getattr, path_of(node).split("."), module) if node.op == "get_attr" else values[node]

    result: Any = x
    for node in unit.nodes[mode]:
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        if node.op == "call_module":
            result = module.get_submodule(path_of(node))(*args, **kwargs)
        elif node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            result = node.target(*args, **kwargs)
        values[node] = result
    return result.permute(0, 3, 1, 2) if unit.swapped[1] else result


class _Called(nn.Module):
    """A network called with its images alone, so that its further arguments keep their defaults while it is traced."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def path_of(node: fx.Node) -> str:
    """The module or parameter of a node, by its name in the network."""
    return str(node.target).removeprefix("network.")


class _BlockTracer(fx.Tracer):
    """Modules that are not to be traced ``through`` are one node."""

    def __init__(self, through: Callable[[nn.Module, str], bool]) -> None:
        super().__init__(autowrap_functions=_untraceable_functions())
        self.through = through

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.through(m, module_qualified_name)


def _untraceable_functions() -> tuple[Callable[..., Any], ...]:
    """Functions that are one node each in timm's networks; none where timm is not installed."""
    try:
        from timm.models import get_notrace_functions
    except ImportError:
        return ()
    return tuple(get_notrace_functions())


def traced_modes(module: nn.Module, through: Callable[[nn.Module, str], bool]) -> tuple[list[fx.Node], list[fx.Node]]:
    """Nodes of the pass in each of the modes; the same ones where the modes do the same.

    Raises:
        UserError: what is done is drawn at random, or a constant is made on the way: one pass does not show it.
    """
    with modes_kept(module):
        before = _drawn()
        graphs = [_BlockTracer(through).trace(_Called(module.train(mode))) for mode in _MODES]
        if _drawn() != before:
            raise UserError("its forward pass draws numbers outside of its layers")
    if any(
        node.op == "get_attr" and str(node.target).startswith("_tensor_constant") for g in graphs for node in g.nodes
    ):
        raise UserError("its forward pass makes a constant tensor; a registered buffer can be cut")
    for graph in graphs:
        for node in graph.nodes:
            if node.kwargs.get("inplace"):  # a kept output would change under its reader
                node.kwargs = {**node.kwargs, "inplace": False}
    if str(graphs[0]) == str(graphs[1]):
        graphs[1] = graphs[0]
    return list(graphs[0].nodes), list(graphs[1].nodes)


def _drawn() -> tuple[Any, ...]:
    """Where the generators stand from which a forward pass may draw."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    tensors = (torch.get_rng_state(), *on_gpus)
    return random.getstate(), str(np.random.get_state()), *(tensor.numpy().tobytes() for tensor in tensors)


def is_composite(module: nn.Module) -> bool:
    return bool(list(module.children()))


def are_alike(children: list[nn.Module]) -> bool:
    """Whether modules are blocks of one kind."""
    kinds = set(map(type, children))
    return len(children) > 1 and len(kinds) == 1 and not kinds & set(SEQUENCES) and is_composite(children[0])


def is_row(module: nn.Module) -> bool:
    """Whether a module is a row of blocks, or consists of one and what joins it to the next."""
    children = list(module.children())
    if isinstance(module, SEQUENCES):
        return len(children) > ROW or any(map(is_composite, children))
    inner = [child for child in children if isinstance(child, SEQUENCES) and len(child)]
    return are_alike(children) or any(all(map(is_composite, row)) for row in inner)


def classifier_name(module: nn.Module, x: Tensor) -> str:
    """Name of the layer that gives the logits: the one that the network declares, or that runs last on ``x``."""
    declared = getattr(module, "get_classifier", lambda: None)()
    modules = module.named_modules()
    names: dict[nn.Module, str] = {child: name for name, child in modules if isinstance(child, nn.Linear | nn.Conv2d)}
    if declared in names:
        return names[declared]
    ran: list[nn.Module] = []
    hooks = [child.register_forward_hook(lambda child, *_: ran.append(child)) for child in names]
    try:
        with modes_kept(module), torch.no_grad():
            module.eval()(x)
    finally:
        for hook in hooks:
            hook.remove()
    return names[ran[-1]] if ran else ""


def prefix_tokens(module: nn.Module, shape: tuple[int, ...], images: Tensor) -> int | None:
    """Tokens that stand for no patch of the image, or None where features are no tokens of a square of patches.

    Args:
        module: a network on images.
        shape: of its features of an image, tokens (L, D) or a map.
        images: (B, C, H, W) that it runs on.
    """
    if len(shape) != 2 or images.shape[-2] != images.shape[-1] or hasattr(module, "reroll"):
        return None  # timm's Hiera keeps patches in another order than by rows, until it "rerolls" them
    declared = getattr(module, "num_prefix_tokens", None)
    numbers = (0, 1) if declared is None else (declared,)
    return next((n for n in numbers if math.isqrt(shape[0] - n) ** 2 == shape[0] - n), None)


def _segments(nodes: list[fx.Node]) -> list[tuple[str, fx.Node, tuple[fx.Node, ...]]]:
    """(name, entry, nodes) between each two places where only one value goes on."""
    position = {node: i for i, node in enumerate(nodes)}
    cuts, reach = [], -1  # how far the values of all earlier nodes are used
    for i, node in enumerate(nodes):
        if node.op not in ("get_attr", "output"):
            if reach <= i:
                cuts.append(node)
            reach = max([reach, *(position[user] for user in node.users)])
    segments = []
    counts: Counter[str] = Counter()
    for entry, end in itertools.pairwise(cuts):
        between = tuple(node for node in nodes[position[entry] + 1 : position[end] + 1] if node.op != "get_attr")
        called = [path_of(node) for node in between if node.op == "call_module"]
        label = called[-1] if called else between[-1].name
        counts[label] += 1  # one module may run in several places, such as a ReLU: relu, relu:2, relu:3
        segments.append((f"{label}:{counts[label]}" if counts[label] > 1 else label, entry, between))
    return segments


def traced_units(module: nn.Module, name: str, classifier: str) -> list[Unit]:
    """The pass between each two places where only one value goes on; the ``classifier`` is looked into."""

    def through(child: nn.Module, path: str) -> bool:
        name = path.removeprefix("network").removeprefix(".")
        return not name or classifier.startswith(f"{name}.") or is_row(child)

    try:
        modes = [_segments(nodes) for nodes in traced_modes(module, through)]
    except Exception as error:  # tracing runs foreign code, any error only means: not traceable
        raise UserError(f"network '{name}' cannot be cut into units ({first_line(error)})") from None
    if [segment[0] for segment in modes[0]] != [segment[0] for segment in modes[1]]:
        raise UserError(f"network '{name}' runs other layers in training than in evaluation; it cannot be cut")
    return [
        Unit(label, (a, b), (evaluated, trained)) for (label, a, evaluated), (_, b, trained) in zip(*modes, strict=True)
    ]


def stated_stages(module: nn.Module) -> list[dict[str, Any]]:
    """What timm says of a network's stages; nothing of other networks."""
    return list(getattr(module, "feature_info", None) or ())


def stated_widths(module: nn.Module, units: list[Unit], first: int = 0) -> dict[int, int]:
    """Channels behind the units that end a stage, by timm's own feature information."""
    widths: dict[int, int] = {}
    for info in stated_stages(module):
        inside = [i for i in range(first, len(units)) if f"{units[i].name}.".startswith(f"{info['module']}.")]
        widths |= dict.fromkeys(inside[-1:], info["num_chs"])
    return widths


def unit_shapes(module: nn.Module, units: list[Unit], x: Tensor, name: str) -> list[tuple[int, ...]]:
    """Shape of each unit's output without the batch; units that swap dimensions are marked as such.

    Raises:
        UserError: what goes on between two units is no tensor.
    """
    plain = list[tuple[int, ...]]()
    with modes_kept(module), torch.no_grad():
        module.eval()
        for unit in units:
            x = run_unit(module, replace(unit, writes=True), x)
            if not isinstance(x, Tensor):
                raise UserError(
                    f"network '{name}' cannot be cut into units (behind {unit.name} goes on what is no tensor)"
                )
            plain.append(tuple(x.shape[1:]))
    turned = _turned(module, units, plain, name)
    for i, unit in enumerate(units):
        units[i] = replace(unit, swapped=(i > 0 and turned[i - 1], turned[i]))
    return [(shape[2], *shape[:2]) if last else shape for shape, last in zip(plain, turned, strict=True)]


def _turned(module: nn.Module, units: list[Unit], shapes: list[tuple[int, ...]], name: str) -> list[bool]:
    """Whether what goes on behind each unit is a map (H, W, C): the network says so, or its stages' widths do.

    Raises:
        UserError: a map has as many channels as rows where others have channels last.
    """
    widths = stated_widths(module, units)
    maps = {i: shape for i, shape in enumerate(shapes) if len(shape) == 3}
    some = any(i in maps and maps[i][0] != width == maps[i][2] for i, width in widths.items())

    def turned(i: int) -> bool:
        declared = i in maps and _channels_are_last(module, units[: i + 1])
        if declared or not some or i not in maps:
            return declared
        width = widths[min((end for end in widths if end >= i), default=max(widths))]
        if maps[i][0] == maps[i][2] == width:
            size = "x".join(map(str, maps[i]))
            raise UserError(
                f"network '{name}' has maps of {size}, whose channels cannot be told from rows; use other images"
            )
        return maps[i][2] == width

    return [turned(i) for i in range(len(units))]


def _channels_are_last(module: nn.Module, done: list[Unit]) -> bool:
    """Whether maps are (B, H, W, C) behind these units: timm's networks say so, torchvision's Swin turns them back."""
    if type(module).__name__ == "SwinTransformer" and type(module).__module__.startswith("torchvision."):
        return not any("permute" in called_modules(module, unit).values() for unit in done)
    return str(getattr(module, "output_fmt", "")).endswith("NHWC")


def with_writes(module: nn.Module, units: list[Unit], x: Tensor) -> list[Unit]:
    """The units, those marked that change their input in place; dropout may do so in training alone."""
    marked = []
    with modes_kept(module), torch.no_grad():
        module.eval()
        for unit in units:
            given = x.clone()
            version = given._version
            x = run_unit(module, unit, given)
            drops = any(
                isinstance(inner, _DropoutNd) and inner.inplace
                for called in called_modules(module, unit)
                for inner in called.modules()
            )
            marked.append(replace(unit, writes=drops or given._version != version))
    return marked


def called_modules(module: nn.Module, unit: Unit) -> dict[nn.Module, str]:
    """The modules that a unit calls, and their names."""
    names = [path_of(node) for node in unit.nodes[0] if node.op == "call_module"]
    return {module.get_submodule(name): name for name in names}
