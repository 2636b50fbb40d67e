"""A network whose units are named, not traced: hooks read them while the module runs as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..contract import Layout
from ..errors import UserError, unknown
from .activations import never_negative
from .chain import Chain
from .modes import modes_kept
from .network import NetworkView
from .tracing import classifier_name, prefix_tokens

POOLED = "pooled"
"""The unit of what the classifier sees."""


@dataclass(frozen=True)
class HookedChain:
    """Two units, what the classifier sees and the classifier; the named modules are taps."""

    classifier: str
    layout: Layout

    def of(self, module: nn.Module) -> Chain:
        """The chain of an instance of the architecture."""
        classifier = module.get_submodule(self.classifier)
        units = ((POOLED, partial(_before, module, classifier)), (self.classifier, classifier))
        return Chain(units, self.layout, {name: module.get_submodule(name) for name in self.layout.stages})


def _before(module: nn.Module, classifier: nn.Module, x: Tensor) -> Tensor:
    """What ``classifier`` sees when ``module`` runs."""
    seen: list[Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        module(x)
    finally:
        hook.remove()
    if not seen:
        raise UserError(f"the classifier of network '{type(module).__name__}' cannot be found")
    return seen[-1]


def hooked(module: nn.Module, x: Tensor, units: Sequence[str], name: str) -> HookedChain:
    """The chain of a network that is read at ``units``.

    Args:
        module: maps images to logits, or to outputs of transformers that have them as ``logits``.
        x: (B, C, H, W) images that it runs on.
        units: dotted paths of modules, in order; they count as the ends of stages.
        name: what messages call the network.

    Raises:
        UserError: no such modules, modules that do not run or give something else than features, or a network whose
            logits are not those of one linear layer on one vector (B, D).
    """
    known = dict(module.named_modules())
    for unit in units:
        if unit not in known:
            raise unknown(f"unit of network '{name}'", unit, known)
    stages, classifier = tuple(units), classifier_name(module, x)
    if classifier not in known:
        raise UserError(f"network '{name}' has no linear layer that gives its logits")
    layout = Layout(stages[0], stages, preacts=stages, blocks=stages, last_map=stages[-1], pooled=POOLED)
    chain = HookedChain(classifier, layout)
    with modes_kept(module), torch.no_grad():
        whole, pooled = module.eval()(x), _before(module, known[classifier], x)
        logits, ours = getattr(whole, "logits", whole), known[classifier](pooled)
        if not isinstance(logits, Tensor):
            raise UserError(f"network '{name}' gives {type(logits).__name__}, and no logits (B, K)")
        same = logits.shape == ours.shape and torch.allclose(logits, ours, rtol=1e-4, atol=1e-5)
        _, features = NetworkView(module, chain.of, x.shape[1:])._run(x, stages)
    if pooled.dim() != 2 or not same:
        raise UserError(f"network '{name}' has no one vector (B, D) before its classifier")
    for unit in stages:
        shape = tuple(getattr(features.get(unit), "shape", ()))
        if len(shape) not in (3, 4):
            raise UserError(f"unit '{unit}' of network '{name}' gives no map (B, C, H, W) and no tokens (B, L, D)")
    non_negative = never_negative(
        module, x, lambda module, images: NetworkView(module, chain.of, x.shape[1:])._run(images, stages)[1]
    )
    layout = replace(layout, rectified=non_negative)
    tokens = prefix_tokens(module, tuple(features[stages[-1]].shape[1:]), x)
    return replace(chain, layout=replace(layout, prefix_tokens=tokens))
