"""Where traced units end in a ReLU: what is non-negative by construction, and what goes into the ReLU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .modes import modes_kept
from .tracing import Unit, is_composite, path_of, traced_modes

_FUNCTIONS: dict[Any, Any] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_", nn.ReLU), F.relu),
    **dict.fromkeys((F.relu6, nn.ReLU6), F.relu6),
}
"""By what is called, which function leaves what it is given as it is."""

_NOTHING = (nn.Identity, nn.modules.dropout._DropoutNd)
_SIGN_KEPT = (*_NOTHING, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def rectified(module: nn.Module, node: fx.Node) -> bool:
    """Whether a value is non-negative: of a ReLU or ReLU6, or of a pooling or dropout behind one."""
    before = node.args[0] if node.args else None
    if node.op == "call_module":
        child = module.get_submodule(path_of(node))
        if isinstance(child, _SIGN_KEPT) and isinstance(before, fx.Node):
            return rectified(module, before)
        if inner := inside(module, node):
            return rectified(module, inner[-1])
    elif node.target in (F.max_pool2d, F.dropout) and isinstance(before, fx.Node):
        return rectified(module, before)
    return _function(module, node) is not None


def never_negative(module: nn.Module, x: Tensor, run: Run) -> frozenset[str]:
    """The units that seem to end in a ReLU, wherever it is: of noise they have zeros, and no negative value.

    Meanwhile parameters are noise that are zero throughout, as those of residual branches are at their start: with
    them a sum would be what came out of the ReLU before. In place, as not every network can be copied after a pass.

    Args:
        module: as it is before and after.
        x: (B, C, H, W) images of the form that it runs on.
        run: what units give, by their names, when the module sees images.
    """
    draws = torch.Generator().manual_seed(0)
    zeros = [parameter for parameter in module.parameters() if not parameter.any()]
    with modes_kept(module), torch.no_grad():
        module.eval()
        try:
            for parameter in zeros:
                parameter.copy_(torch.randn(parameter.shape, generator=draws))
            values = run(module, torch.randn(x.shape, generator=draws).to(x))
        finally:
            for parameter in zeros:
                parameter.zero_()
    return frozenset(name for name, y in values.items() if y.numel() >= ENOUGH and y.min() == 0 < y.max())


Run = Callable[[nn.Module, Tensor], Mapping[str, Tensor]]

ENOUGH = 64
"""Values without a sign that are hardly chance."""


def inside(module: nn.Module, node: fx.Node) -> list[fx.Node]:
    """What a block does, if it can be traced and does the same in training and evaluation; batch-norms are one node."""
    if node.op != "call_module" or not _is_block(block := module.get_submodule(path_of(node))):
        return []
    try:
        nodes, other = traced_modes(block, lambda child, path: _is_block(child))
    except Exception:  # tracing runs foreign code, any error only means: it stays whole
        return []
    if nodes != other:
        return []
    for inner in nodes:
        if inner.op in ("call_module", "get_attr"):
            inner.target = f"{path_of(node)}.{path_of(inner)}"
    return nodes[:-1]


def opaque(module: nn.Module, unit: Unit) -> bool:
    """Whether a unit ends with a block that cannot be looked into."""
    steps = [node for node in unit.nodes[0] if not _is(module, node, _NOTHING)]
    last = steps[-1] if steps else unit.nodes[0][-1]
    return last.op == "call_module" and _is_block(module.get_submodule(path_of(last))) and not inside(module, last)


def split(module: nn.Module, unit: Unit) -> tuple[Unit, Unit] | None:
    """A unit that ends in a ReLU as two: up to what goes into it, and a ReLU that leaves that as it is.

    None where the unit does not end so, or where what goes into the ReLU cannot be had.
    """
    modes = unit.nodes[:1] if unit.nodes[0] == unit.nodes[1] else unit.nodes
    ends = [end for nodes in modes if (end := _end(module, nodes))]
    if len(ends) < len(modes):
        return None
    first, second = (ends[0], ends[-1])
    summed = [end.become(module) for end in ends]
    between = unit.swapped[1]
    before = replace(unit, name=f"{unit.name}{SUM}", nodes=(first.body, second.body))
    relu = replace(
        unit,
        entry=(summed[0], summed[-1]),
        nodes=(first.after, second.after),
        swapped=(between, between),
        writes=False,
    )
    return before, relu


SUM = ".sum"
"""Behind the name of a unit that was cut before its ReLU: what goes into that, of a residual block the sum."""


@dataclass
class _End:
    """Nodes that end in a ReLU: ``body`` up to what goes into it, ``relu`` itself, ``after`` from the last block on."""

    body: tuple[fx.Node, ...]
    relu: fx.Node
    after: tuple[fx.Node, ...]
    function: Any

    def become(self, module: nn.Module) -> fx.Node:
        """Makes the first node of ``after``, which those behind it know, the ReLU; gives the node that goes into it."""
        summed, graph = self.relu.args[0], self.relu.graph
        assert isinstance(summed, fx.Node)
        if _normalises(module, self.relu):
            with graph.inserting_before(self.relu):
                norm = graph.create_node("get_attr", path_of(self.relu))
                summed = graph.call_function(_normalised, (norm, summed))
            self.body = (*self.body, summed)
        node = self.after[0]
        node.op, node.target, node.args, node.kwargs = "call_function", self.function, (summed,), {}
        return summed


def _end(module: nn.Module, nodes: tuple[fx.Node, ...]) -> _End | None:
    """How nodes end, where it is in a ReLU with something before it."""
    last = len(nodes) - 1
    while last > 0 and _is(module, nodes[last], _NOTHING):
        last -= 1
    body, relu = nodes[:last], nodes[last]
    if inner := inside(module, relu):
        entries = [node for node in inner if node.op == "placeholder"]
        if len(entries) != 1 or len(relu.args) != 1 or relu.kwargs:
            return None
        entries[0].replace_all_uses_with(relu.args[0])  # type: ignore[arg-type]
        steps = [node for node in inner if node.op not in ("placeholder", "get_attr")]
        while len(steps) > 1 and _is(module, steps[-1], nn.Identity):
            steps.pop()
        body, relu = (*body, *steps[:-1]), steps[-1]
    function = _function(module, relu)
    if function is None or not isinstance(next(iter(relu.args), None), fx.Node):
        return None
    return _End(body, relu, nodes[last:], function) if body or _normalises(module, relu) else None


def _is(module: nn.Module, node: fx.Node, kinds: Any) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(path_of(node)), kinds)


def _normalises(module: nn.Module, relu: fx.Node) -> bool:
    """Whether a ReLU is the end of a batch-norm, as some of timm's have it."""
    return _is(module, relu, _BatchNorm)


def _is_block(child: nn.Module) -> bool:
    """Whether a module is looked into. A batch-norm is not: timm's have an activation within, and two modes."""
    return is_composite(child) and not isinstance(child, _BatchNorm)


def _function(module: nn.Module, node: fx.Node) -> Any:
    """The ReLU or ReLU6 that a node is or, as timm's batch-norms, ends with; None where it is none."""
    if node.op != "call_module":
        return _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None
    child = module.get_submodule(path_of(node))
    activation = getattr(child, "act", None)
    if isinstance(child, _BatchNorm) and activation is not None:
        return _FUNCTIONS.get(type(activation)) if isinstance(getattr(child, "drop", None), nn.Identity) else None
    return _FUNCTIONS.get(type(child))


def _normalised(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What a batch-norm of timm gives before its activation: its forward pass, without that.

    The parent's forward pass would do, were it not for its check of dimensions, which cannot be traced.
    """
    factor, learns = norm.momentum, norm.training and norm.track_running_stats
    if learns and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        factor = 1.0 / float(norm.num_batches_tracked) if factor is None else factor
    tracked = learns or not norm.training
    mean, variance = (norm.running_mean, norm.running_var) if tracked else (None, None)
    by_batch = norm.training or (norm.running_mean is None and norm.running_var is None)
    return F.batch_norm(x, mean, variance, norm.weight, norm.bias, by_batch, factor or 0.0, norm.eps)
