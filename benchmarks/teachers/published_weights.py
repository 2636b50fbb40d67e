"""Weights that timm and torchvision publish for ImageNet, as entries of teachers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kd_methods.errors import UserError, unknown

TIMM = "timm:"


def values(name: str) -> dict[str, Any]:
    """The entry for ``timm:NAME.TAG`` or ``torchvision:NAME.VERSION``, as keywords.

    Raises:
        UserError: the library has no such network or no such weights of it.
    """
    library, _, model = name.partition(":")
    network, _, tag = model.partition(".")
    make = {"timm": _timm, "torchvision": _torchvision}.get(library)
    if make is None:
        raise unknown("library of weights", library, ("timm", "torchvision"))
    return {"network": f"{library}:{network}", "task": "imagenet", "origin": library, **make(network, tag)}


def _timm(network: str, tag: str) -> dict[str, Any]:
    import timm

    known = timm.list_pretrained(f"{network}.*")
    name = f"{network}.{tag}" if tag else next(iter(known), network)
    config = timm.get_pretrained_cfg(name) if name in known else None
    if config is None:
        raise unknown("weights of timm", name, known or timm.list_pretrained())
    if config.num_classes != 1000:
        raise UserError(f"the weights {TIMM}{name} know {config.num_classes} classes, ImageNet has 1000; take others")
    return {"name": name, "mean": config.mean, "std": config.std, "sources": (f"{TIMM}{name}",)}


def _torchvision(network: str, version: str) -> dict[str, Any]:
    import torchvision.models

    try:
        kinds = torchvision.models.get_model_weights(network)
    except ValueError:
        raise unknown("network of torchvision", network, torchvision.models.list_models(torchvision.models)) from None
    known = {kind.name: kind for kind in kinds}
    version = version or "IMAGENET1K_V1"
    if version not in known:
        raise unknown(f"weights of torchvision:{network}", version, known)
    weights = known[version]
    accuracy = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    transforms = weights.transforms()
    return {
        "name": f"{network}.{version}",
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "expected": accuracy,
        "expected_source": "torchvision's metadata of the weights",
        "sources": (weights.url,),
        "sha256": weights.url.rpartition("-")[2].partition(".")[0],
    }


def from_timm(source: str) -> dict[str, Tensor]:
    """The weights that ``timm:NAME.TAG`` means, loaded and checked by timm.

    Raises:
        OSError: they cannot be had.
    """
    import timm

    try:
        return dict(timm.create_model(source.removeprefix(TIMM), pretrained=True).state_dict())
    except Exception as error:  # of whatever library carries the file
        raise OSError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from None
