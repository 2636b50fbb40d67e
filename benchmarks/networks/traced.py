"""Any network of timm or torchvision as a chain of units: its own forward pass, cut where one tensor carries all.

``timm:NAME`` and ``torchvision:NAME`` are built for the task's image size; with ``@SIZE`` behind the name the network
resizes its inputs to SIZE x SIZE first. The forward pass is traced as far as its blocks, which stay whole, and cut
where nothing but one tensor goes on: so a pass that is resumed behind a unit is the network's own, whatever its family.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import get_notrace_functions
from torch import Tensor, fx, nn

from kd_methods.contract import Layout
from kd_methods.errors import UserError, unknown
from kd_methods.views.layers import evenly_spaced
from kd_methods.views.modes import modes_kept

from .network import Chain

STAGES = 4
"""Of a network whose layers are all alike, so many count as ends of stages, at equal shares of its depth."""

ROW = 6
"""Of a plain sequence with more layers each is looked at by itself."""

SIZES = (8, 2048)
"""Least and largest height and width that images are resized to."""

_NAME = re.compile(r"(?P<library>timm|torchvision):(?P<name>[^@]+)(@(?P<size>[1-9]\d*))?")
_RECTIFIERS = (F.relu, torch.relu, torch.relu_)
_SEQUENCES = (nn.Sequential, nn.ModuleList)
_MODES = (False, True)
"""Evaluation and training: what is done may differ."""


def is_traced(name: str) -> bool:
    """Whether a network is one of timm or torchvision."""
    return _NAME.fullmatch(name) is not None


def check(name: str) -> None:
    """Raise UserError where the library has no network of that name, or the size is none of images."""
    found = _NAME.fullmatch(name)
    assert found
    least, largest = SIZES
    size = found["size"]
    if size and (len(size) > len(str(largest)) or not least <= int(size) <= largest):
        raise UserError(f"network '{name[:80]}' resizes images to {size[:20]}; sizes are {least} to {largest}")
    library, own = found["library"], found["name"]
    if library == "timm" and "." in own and timm.is_model(own.partition(".")[0]):
        raise UserError(f"'{name}' names weights; the network is timm:{own.partition('.')[0]}, see: teachers fetch")
    if own not in _known(library):
        raise unknown(f"network of {library}", own, _known(library))


@functools.cache
def _known(library: str) -> frozenset[str]:
    if library == "timm":
        return frozenset(name for name in timm.list_models() if not name.startswith("kd_"))
    import torchvision.models

    return frozenset(torchvision.models.list_models(torchvision.models))


def build(name: str, num_classes: int, input_shape: tuple[int, ...]) -> tuple[nn.Module, Callable[[nn.Module], Chain]]:
    """A network without weights, and what makes its chain.

    Raises:
        UserError: it cannot be built for the size, or not be cut into units.
    """
    found = _NAME.fullmatch(name)
    assert found
    height, width = (int(found["size"]),) * 2 if found["size"] else input_shape[1:]
    if found["library"] == "torchvision":
        import torchvision.models

        module = torchvision.models.get_model(found["name"], weights=None, num_classes=num_classes)
    else:
        module = _timm(found["name"], num_classes, (input_shape[0], height, width))
    size = input_shape[0], height, width
    if (name, num_classes, size) not in _plans:
        _plans[name, num_classes, size] = _plan(module, _fitting(module, size, name), name)
    resize = (height, width) if (height, width) != tuple(input_shape[1:]) else None
    return module, partial(_chain, _plans[name, num_classes, size], resize)


def _fitting(module: nn.Module, size: tuple[int, ...], name: str) -> Tensor:
    """Two empty images, on which the network has run."""
    x = torch.zeros(2, *size)
    try:
        with modes_kept(module), torch.no_grad():
            module.eval()(x)
    except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"network '{name}' does not run on images of {size[1]}x{size[2]} ({reason}); "
            f"{name.partition('@')[0]}@SIZE resizes them"
        ) from None
    return x


def _timm(name: str, num_classes: int, input_size: tuple[int, int, int]) -> nn.Module:
    """timm's network; those with a fixed size of images are built for this one."""
    config = timm.get_pretrained_cfg(name)
    usual = tuple(config.input_size) if config else ()
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if config and config.fixed_input_size and usual != input_size:
        arguments["img_size"] = input_size[1:]
    try:
        return timm.create_model(name, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        size = "x".join(map(str, input_size[1:]))
        raise UserError(
            f"timm:{name} cannot be built for images of {size} ({str(error).splitlines()[0]}); "
            f"timm:{name}@{usual[-1] if usual else 224} resizes them"
        ) from None


@dataclass(frozen=True)
class _Unit:
    """Nodes of a traced pass that lead from one tensor to one tensor, in evaluation and in training.

    ``swapped``: whether input and output are (B, H, W, C) within. ``writes``: it changes its input in place.
    """

    name: str
    entry: tuple[fx.Node, fx.Node]
    nodes: tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]
    swapped: tuple[bool, bool] = (False, False)
    writes: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unit:
        return self  # nodes say what to call by name; nothing of a network is in them

    def then(self, other: _Unit) -> _Unit:
        """Both, one after the other, as one unit."""
        nodes = (self.nodes[0] + other.nodes[0], self.nodes[1] + other.nodes[1])
        return replace(self, nodes=nodes, swapped=(self.swapped[0], other.swapped[1]))


@dataclass(frozen=True)
class _Plan:
    """Depends on the architecture alone, and so serves all its instances."""

    units: tuple[_Unit, ...]
    layout: Layout

    def __deepcopy__(self, memo: dict[int, Any]) -> _Plan:
        return self


_plans: dict[tuple[str, int, tuple[int, ...]], _Plan] = {}
"""By name, number of classes and size of the images: tracing takes a good part of a second."""


def _chain(plan: _Plan, resize: tuple[int, int] | None, module: nn.Module) -> Chain:
    units: list[tuple[str, Callable[[Any], Any]]] = [(unit.name, partial(_run, module, unit)) for unit in plan.units]
    if resize:
        units.insert(0, ("resize", partial(_resized, resize)))
    return Chain(tuple(units), plan.layout, alone=resize is None)


def _resized(size: tuple[int, int], x: Tensor) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)


def _run(module: nn.Module, unit: _Unit, x: Tensor) -> Tensor:
    """One unit on its input; features that are (B, H, W, C) within are (B, C, H, W) outside."""
    mode = module.training
    x = x.clone() if unit.writes else x
    values: dict[fx.Node, Any] = {unit.entry[mode]: x.permute(0, 2, 3, 1) if unit.swapped[0] else x}

    def value(node: fx.Node) -> Any:
        # A parameter may be used by several units.
        return functools.reduce(getattr, _path(node).split("."), module) if node.op == "get_attr" else values[node]

    result: Any = x
    for node in unit.nodes[mode]:
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        if node.op == "call_module":
            result = module.get_submodule(_path(node))(*args, **kwargs)
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


def _path(node: fx.Node) -> str:
    """The module or parameter of a node, by its name in the network."""
    return str(node.target).removeprefix("network.")


class _Tracer(fx.Tracer):
    """Modules that are not to be traced ``through`` are one node."""

    def __init__(self, through: Callable[[nn.Module, str], bool]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.through = through

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.through(m, module_qualified_name)


def _traced(module: nn.Module, through: Callable[[nn.Module, str], bool]) -> tuple[list[fx.Node], list[fx.Node]]:
    """Nodes of the pass in each of the modes; the same ones where the modes do the same."""
    with modes_kept(module):
        graphs = [_Tracer(through).trace(_Called(module.train(mode))) for mode in _MODES]
    for graph in graphs:
        for node in graph.nodes:
            if node.kwargs.get("inplace"):  # a kept output would change under its reader
                node.kwargs = {**node.kwargs, "inplace": False}
    if str(graphs[0]) == str(graphs[1]):
        graphs[1] = graphs[0]
    return list(graphs[0].nodes), list(graphs[1].nodes)


def _composite(module: nn.Module) -> bool:
    return bool(list(module.children()))


def _alike(children: list[nn.Module]) -> bool:
    """Whether modules are blocks of one kind."""
    kinds = set(map(type, children))
    return len(children) > 1 and len(kinds) == 1 and not kinds & set(_SEQUENCES) and _composite(children[0])


def _row(module: nn.Module) -> bool:
    """Whether a module is a row of blocks, or consists of one and what joins it to the next."""
    children = list(module.children())
    if isinstance(module, _SEQUENCES):
        return len(children) > ROW or any(map(_composite, children))
    inner = [child for child in children if isinstance(child, _SEQUENCES) and len(child)]
    return _alike(children) or any(all(map(_composite, row)) for row in inner)


def _classifier(module: nn.Module) -> str:
    """Name of the layer that gives the logits."""
    own = getattr(module, "get_classifier", lambda: None)()
    names = {child: name for name, child in module.named_modules() if isinstance(child, nn.Linear | nn.Conv2d)}
    return names[own] if own in names else list(names.values())[-1]


def _segments(nodes: list[fx.Node]) -> list[tuple[str, fx.Node, tuple[fx.Node, ...]]]:
    """(name, entry, nodes) between each two places where only one value goes on."""
    position = {node: i for i, node in enumerate(nodes)}
    cuts, reach = [], -1  # how far the values of all earlier nodes are used
    for i, node in enumerate(nodes):
        if node.op not in ("get_attr", "output"):
            if reach <= i:
                cuts.append(node)
            reach = max([reach, *(position[user] for user in node.users)])
    found = []
    for entry, end in itertools.pairwise(cuts):
        own = tuple(node for node in nodes[position[entry] + 1 : position[end] + 1] if node.op != "get_attr")
        called = [_path(node) for node in own if node.op == "call_module"]
        found.append((called[-1] if called else own[-1].name, entry, own))
    return found


def _plan(module: nn.Module, x: Tensor, name: str) -> _Plan:
    """The units of a network, and which of them carry what.

    Parts before the first block are the stem; a unit of the trunk ends with a block, or with an activation where there
    are no blocks; behind the last stage, what does nothing and what completes a convolution joins the unit before.
    """
    parts = _parts(module, name)
    calls = [_calls(module, part) for part in parts]
    shapes = _shapes(module, parts, x)
    first = _first_block(module, parts, calls)
    ends = _stage_ends(module, parts, calls, shapes, first)
    if not ends:
        raise UserError(f"the blocks of network '{name}' cannot be found")
    groups: list[list[int]] = [list(range(first)), []]
    for i in range(first, len(parts)):
        in_trunk = i <= ends[-1]
        joins = _does_nothing(calls[i]) or (len(groups[-1]) and _completes(parts[i], calls[i], calls[i - 1]))
        if not in_trunk and not joins:
            groups.append([])
        groups[-1].append(i)
        if i < ends[-1] and (i in ends or _ends_unit(module, calls[i])):
            groups.append([])

    units: list[_Unit] = []
    shape_of: dict[str, tuple[int, ...]] = {}
    preact_of: dict[str, str] = {}
    rectified = set()
    for group in filter(None, groups):
        last = group[-1]
        named = min((i for i in group if i in ends), default=last if last <= ends[-1] else group[0])
        label = "stem" if last < first else parts[named].name
        unit = replace(functools.reduce(_Unit.then, (parts[i] for i in group)), name=label)
        inner = _inner(module, unit)
        if len(unit.nodes[0]) == 1 and inner and _relu(module, inner[-1]) and set(group) & set(ends):
            before, unit = _split(unit, inner)
            preact_of[label] = before.name
            units.append(before)
        if _rectified(module, inner[-1] if inner else unit.nodes[0][-1]):
            rectified.add(label)
        units.append(unit)
        shape_of[label] = shape_of[preact_of.get(label, label)] = shapes[last]
    stages = [next(u.name for u in units if u.name == parts[i].name) for i in ends]
    return _Plan(tuple(units), _layout(module, units, stages, shape_of, preact_of, frozenset(rectified), name))


def _layout(
    module: nn.Module,
    units: list[_Unit],
    stages: list[str],
    shapes: Mapping[str, tuple[int, ...]],
    preacts: Mapping[str, str],
    rectified: frozenset[str],
    name: str,
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
    if len(shapes[names[-2]]) != 1 or _classifier(module) not in _calls(module, units[-1]).values():
        raise UserError(f"network '{name}' has no one vector (B, D) before its classifier")
    weighted = [
        unit.name for unit in head if any(isinstance(child, nn.Conv2d | nn.Linear) for child in _calls(module, unit))
    ]
    trunk = [unit for unit in maps if unit not in preacts.values()]
    return Layout(
        stem=names[0],
        stages=tuple(stages),
        preacts=tuple(preacts.get(stage, stage) for stage in stages),
        blocks=(*stages[:-1], (weighted or stages)[-1]),
        last_map=maps[-1],
        pooled=names[-2],
        rectified=rectified,
        layers=(*trunk, names[-2]),
        prefix_tokens=_prefix_tokens(module, shapes[stages[-1]]),
    )


def _prefix_tokens(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    """Tokens that stand for no patch of the image, or None where features are no tokens of a square of patches."""
    if len(shape) != 2:
        return None
    own = getattr(module, "num_prefix_tokens", None)
    numbers = (0, 1) if own is None else (own,)
    return next((n for n in numbers if math.isqrt(shape[0] - n) ** 2 == shape[0] - n), None)


def _parts(module: nn.Module, name: str) -> list[_Unit]:
    """The pass between each two places where only one value goes on."""
    classifier = _classifier(module)

    def through(child: nn.Module, path: str) -> bool:
        own = path.removeprefix("network").removeprefix(".")
        return not own or classifier.startswith(f"{own}.") or _row(child)

    try:
        modes = [_segments(nodes) for nodes in _traced(module, through)]
    except Exception as error:  # tracing runs foreign code, any error only means: not traceable
        raise UserError(f"network '{name}' cannot be cut into units ({str(error).splitlines()[0]})") from None
    if [part[0] for part in modes[0]] != [part[0] for part in modes[1]]:
        raise UserError(f"network '{name}' runs other layers in training than in evaluation; it cannot be cut")
    return [_Unit(label, (a, b), (own, other)) for (label, a, own), (_, b, other) in zip(*modes, strict=True)]


def _shapes(module: nn.Module, parts: list[_Unit], x: Tensor) -> list[tuple[int, ...]]:
    """Shape of each part's output without the batch; parts that swap dimensions or write are marked as such."""
    swaps = str(getattr(module, "output_fmt", "")).endswith("NHWC")
    shapes = []
    with modes_kept(module), torch.no_grad():
        module.eval()
        for i, part in enumerate(parts):
            version = x._version
            out = _run(module, part, x)
            swapped = (i > 0 and swaps and x.dim() == 4, swaps and out.dim() == 4)
            parts[i] = replace(part, swapped=swapped, writes=x._version != version)
            shapes.append(tuple(out.permute(0, 3, 1, 2).shape[1:] if swapped[1] else out.shape[1:]))
            x = out
    return shapes


def _calls(module: nn.Module, part: _Unit) -> dict[nn.Module, str]:
    """The modules that a part calls, and their names."""
    names = [_path(node) for node in part.nodes[0] if node.op == "call_module"]
    return {module.get_submodule(name): name for name in names}


def _first_block(module: nn.Module, parts: list[_Unit], calls: list[dict[nn.Module, str]]) -> int:
    """The first part that is a block of a row of blocks, or of a stage that timm names, or a layer of a long row."""

    def rows(child: nn.Module, name: str) -> bool:
        parent = name.rpartition(".")[0]
        return bool(parent) and _row(module.get_submodule(parent))

    stages = {info["module"] for info in (getattr(module, "feature_info", None) or ())[-STAGES:]}
    blocks = [
        i
        for i, called in enumerate(calls)
        if any(_composite(child) and (rows(child, name) or name in stages) for child, name in called.items())
    ]
    layers = [i for i, called in enumerate(calls) if any(rows(*call) for call in called.items())]
    return next(iter(blocks or layers), len(parts))


def _ends_unit(module: nn.Module, called: Mapping[nn.Module, str]) -> bool:
    """Whether a part ends with a block of a row, or with an activation."""

    def in_sequence(name: str) -> bool:
        parent = module.get_submodule(name.rpartition(".")[0])
        return isinstance(parent, _SEQUENCES) or _alike(list(parent.children()))

    blocks = any(_composite(child) and in_sequence(name) for child, name in called.items())
    return blocks or any(map(_activates, called))


def _activates(child: nn.Module) -> bool:
    return type(child).__module__ == "torch.nn.modules.activation"


def _does_nothing(called: Mapping[nn.Module, str]) -> bool:
    return bool(called) and all(isinstance(child, nn.Identity | nn.Dropout) for child in called)


def _completes(part: _Unit, called: Mapping[nn.Module, str], before: Mapping[nn.Module, str]) -> bool:
    """Whether a part is the normalisation or the activation of the convolution, or linear map, before it."""
    if len(part.nodes[0]) != len(called):
        return False
    normalises = all(_activates(child) or _normalises(child) for child in called)
    return normalises and any(isinstance(child, nn.Conv2d | nn.Linear) or _normalises(child) for child in before)


def _normalises(child: nn.Module) -> bool:
    return "Norm" in type(child).__name__


def _stage_ends(
    module: nn.Module,
    parts: list[_Unit],
    calls: list[dict[nn.Module, str]],
    shapes: list[tuple[int, ...]],
    first: int,
) -> list[int]:
    """Parts that end a stage: timm's own feature information, else the last block of each resolution."""
    ends = []
    for info in getattr(module, "feature_info", None) or ():
        own = info["module"]
        inside = [i for i in range(first, len(parts)) if f"{parts[i].name}.".startswith(f"{own}.")]
        ends += inside[-1:]
    if not ends:
        blocks = [i for i in range(first, len(parts)) if _ends_unit(module, calls[i]) and len(shapes[i]) > 1]
        sizes = [_size(shapes[i]) for i in blocks]
        alike = len(set(sizes)) == 1
        ends = [i for i, size, later in zip(blocks, sizes, [*sizes[1:], ()], strict=True) if alike or size != later]
    if len(ends) > STAGES and len({_size(shapes[i]) for i in ends}) == 1:
        return [ends[i] for i in evenly_spaced(STAGES, len(ends))]
    return ends[-STAGES:]


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of a map, number of tokens; of a vector nothing."""
    return shape[1:] if len(shape) == 3 else shape[:-1]


def _inner(module: nn.Module, unit: _Unit) -> list[fx.Node]:
    """What the block that ends a unit does, if it can be traced and does the same in training and evaluation."""
    last = unit.nodes[0][-1]
    if last.op != "call_module" or not _composite(block := module.get_submodule(_path(last))):
        return []
    try:
        nodes, other = _traced(block, lambda child, path: _composite(child))
    except Exception:  # as above: it stays whole
        return []
    if nodes != other:
        return []
    for node in nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = f"{_path(last)}.{_path(node)}"
    return nodes[:-1]


def _pools(module: nn.Module, node: fx.Node) -> bool:
    called = type(module.get_submodule(_path(node))) if node.op == "call_module" else node.target
    return "pool" in getattr(called, "__name__", "").lower()


def _relu(module: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(_path(node))) is nn.ReLU
    return node.target in (*_RECTIFIERS, "relu", "relu_")


def _rectified(module: nn.Module, node: fx.Node) -> bool:
    """Whether a value is non-negative: of a ReLU or ReLU6, or of a pooling behind one."""
    if node.op == "call_module":
        child = module.get_submodule(_path(node))
        if isinstance(child, nn.MaxPool2d | nn.Identity) and isinstance(node.args[0], fx.Node):
            return node.args[0].op != "placeholder" and _rectified(module, node.args[0])
        return isinstance(child, nn.ReLU | nn.ReLU6)
    return _relu(module, node)


def _split(unit: _Unit, inner: list[fx.Node]) -> tuple[_Unit, _Unit]:
    """A block that ends in a ReLU as two units: up to the sum, and a ReLU that leaves the sum as it is."""
    placeholder, *body, last = inner
    summed = last.args[0]
    assert isinstance(summed, fx.Node)
    with last.graph.inserting_before(last):
        relu = last.graph.call_function(F.relu, (summed,))
    own = tuple(node for node in body if node.op != "get_attr")
    before = replace(unit, name=f"{unit.name}.sum", entry=(placeholder,) * 2, nodes=(own,) * 2)
    return before, replace(unit, entry=(summed,) * 2, nodes=((relu,),) * 2, writes=False)
