"""What a network of timm leaves out of weight decay."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def exempt(module: nn.Module) -> Iterator[nn.Parameter]:
    """Trained parameters that timm's optimisers do not let decay, of each network of timm in a module.

    Those that its ``no_weight_decay()`` names (class token, position embeddings), biases and normalisations.
    """
    names = getattr(module, "no_weight_decay", None)
    if not callable(names):
        for child in module.children():
            yield from exempt(child)
        return
    from timm.optim import param_groups_weight_decay

    for group in param_groups_weight_decay(module, 1.0, no_weight_decay_list=names()):
        if not group["weight_decay"]:
            yield from group["params"]
