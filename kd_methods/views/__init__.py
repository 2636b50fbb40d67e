"""Any module of PyTorch as a Network: cut into named units, run, kept, resumed.

A network of one's own is an :class:`Architecture`, whose forward pass is its chain. Of any other classifier of images
:func:`view` finds the units by tracing; encoders of transformers are cut at their layers by :mod:`.text`.
"""

from .chain import Architecture, Chain, in_turn
from .folding import fold_batch_norms
from .network import LogitsOnly, NetworkView
from .teacher_tail import TEACHER_TAIL
from .traced import TracedChain, trace, view

__all__ = [
    "TEACHER_TAIL",
    "Architecture",
    "Chain",
    "LogitsOnly",
    "NetworkView",
    "TracedChain",
    "fold_batch_norms",
    "in_turn",
    "trace",
    "view",
]
