"""Knowledge-distillation methods behind one registry, and any of them on any two networks as one module.

>>> import kd_methods
>>> kd_methods.available()
>>> kd = kd_methods.Distiller("dkd", student, teacher, num_classes=100, beta=2.0)
>>> kd(images, labels, progress=epoch / epochs).total().backward()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import UserError
from .registry import available, build, card, register, settings

if TYPE_CHECKING:
    from .distiller import Distiller, StepLosses
    from .views import view

__all__ = ["Distiller", "StepLosses", "UserError", "available", "build", "card", "register", "settings", "view"]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    if name in ("Distiller", "StepLosses"):
        from . import distiller

        return getattr(distiller, name)
    if name == "view":
        from .views import view

        return view
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
