"""The one interface between what is compared (the methods) and how it is compared (whoever trains by them).

A method sees two networks, what their forward passes kept, and a batch. It knows no architecture, no data set and no
training loop; the loop knows no method. Everything that either side may ask of the other is declared here.
"""

from .batch import Batch, DataInfo, Progress, TeacherPass
from .card import Card, Family, Needs
from .features import (
    FIELDS,
    MAPS,
    NO_OUTPUTS,
    AnchorRelations,
    DenseHeads,
    DenseOutputs,
    Heads,
    Layout,
    Modality,
    Outputs,
    Pyramid,
    Tokens,
    joined,
)
from .method import Losses, Method, MethodSettings, Phase, TeacherlessMethod
from .network import Network

__all__ = [
    "FIELDS",
    "MAPS",
    "NO_OUTPUTS",
    "AnchorRelations",
    "Batch",
    "Card",
    "DataInfo",
    "DenseHeads",
    "DenseOutputs",
    "Family",
    "Heads",
    "Layout",
    "Losses",
    "Method",
    "MethodSettings",
    "Modality",
    "Needs",
    "Network",
    "Outputs",
    "Phase",
    "Progress",
    "Pyramid",
    "TeacherPass",
    "TeacherlessMethod",
    "Tokens",
    "joined",
]
