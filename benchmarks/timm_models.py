"""Importing this module makes the suite's architectures models of timm's, called ``kd_NAME``.

>>> import timm, benchmarks.timm_models  # of the installed package: kdbench.timm_models
>>> timm.create_model("kd_resnet20", num_classes=100)
"""

from .networks.libraries.timm_entry import default_cfgs

__all__ = ["names"]


def names() -> list[str]:
    """What ``timm.create_model`` calls them."""
    return list(default_cfgs)
