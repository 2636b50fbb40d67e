"""Knowledge-distillation methods behind one registry.

>>> import kd_methods
>>> kd_methods.available()
>>> method = kd_methods.build("dkd", student, teacher, info, beta=2.0)
"""

from .errors import UserError
from .registry import available, build, card, register, settings

__all__ = ["UserError", "available", "build", "card", "register", "settings"]
