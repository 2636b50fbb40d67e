"""Folding of frozen batch-norms into the convolutions before them."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .chain import Chain


class _LeafTracer(fx.Tracer):
    """Treats modules that look at shapes (``fx_leaf``) as opaque."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return getattr(m, "fx_leaf", False) or super().is_leaf_module(m, module_qualified_name)


class _Chained(nn.Module):
    """Runs a module unit by unit and remembers, while traced, which nodes are the units' outputs."""

    def __init__(self, module: nn.Module, chain: Callable[[nn.Module], Chain]) -> None:
        super().__init__()
        self.module = module
        self.chain = chain
        self.ends: set[fx.Node] = set()

    def forward(self, x: fx.Proxy) -> fx.Proxy:
        for _, run in self.chain(self.module).units:
            x = run(x)  # type: ignore[arg-type, assignment]
            self.ends.add(x.node)
        return x


def fold_batch_norms(module: nn.Module, chain: Callable[[nn.Module], Chain] | None = None) -> nn.Module:
    """An eval-mode copy in which every batch-norm that directly and solely follows a convolution is folded into it.

    Batch-norms elsewhere (before a convolution, after a sum) stay, and so do those behind a convolution that ends
    another unit of the chain, or is a tap, whose output somebody may read. Architectures that torch.fx cannot trace are
    copied unchanged. The outputs of all units agree with the original's up to rounding.
    """
    copied = copy.deepcopy(module).eval()
    root = _Chained(copied, chain) if chain else copied
    try:
        graph = _LeafTracer().trace(root)
    except Exception:  # tracing runs foreign code, any error only means: not traceable
        return copied
    ends = root.ends if isinstance(root, _Chained) else set()
    modules = dict(root.named_modules())
    tapped = set(chain(copied).taps.values()) if chain else set()
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        if node.op != "call_module" or type(modules[node.target]) is not nn.BatchNorm2d:
            continue
        source = node.args[0]
        if (
            source.op == "call_module"
            and type(modules[source.target]) is nn.Conv2d
            and len(source.users) == 1
            and source not in ends
            and modules[source.target] not in tapped
            and calls.count(source.target) == calls.count(node.target) == 1
            and modules[node.target].running_var is not None
            and not modules[source.target]._forward_pre_hooks  # which compute its weight, as of weight_norm
        ):
            fused = fuse_conv_bn_eval(modules[source.target], modules[node.target])
            root.set_submodule(source.target, fused)
            root.set_submodule(node.target, nn.Identity())
    return copied
