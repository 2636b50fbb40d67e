"""Text encoders by name: small BERTs and ModernBERTs from random weights, ``hf:SOURCE`` with the source's weights.

``hf:SOURCE[first6]`` has the source's first six layers, ``[last6]`` the last, ``[spread6]`` six at equal shares.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from kd_methods.contract import Network
from kd_methods.views import NetworkView
from kd_methods.views import text as text_view

from ..common.files import digest, sha256_file
from . import text
from .source import NetworkSource

VOCABULARY = 30522
"""Words of bert-base-uncased."""

BERTS = {
    "bert_base": (12, 768, 12, 0.1),
    "bert_base_l6": (6, 768, 12, 0.1),
    "bert_base_l3": (3, 768, 12, 0.1),
    "bert_l4_h128": (4, 128, 2, 0.1),
    "bert_l2_h128": (2, 128, 2, 0.1),
    "bert_l4_h64": (4, 64, 2, 0.0),
    "bert_l2_h64": (2, 64, 2, 0.0),
    "bert_l2_h32": (2, 32, 2, 0.0),
}
"""BERTs that start from random weights: layers, width, heads, dropout (with it, the smallest do not learn)."""

MODERN_BERTS = {
    "modernbert_l4_h128": (4, 128, 2, 0.1),
    "modernbert_l2_h128": (2, 128, 2, 0.1),
    "modernbert_l4_h64": (4, 64, 2, 0.0),
    "modernbert_l2_h64": (2, 64, 2, 0.0),
}
"""ModernBERTs, likewise: encoders of another family, on the task's vocabulary."""

ENCODERS = BERTS | MODERN_BERTS

_PRETRAINED = re.compile(r"hf:(?P<source>.+?)(\[(?P<which>first|last|spread)(?P<count>[1-9]\d{0,3})\])?")


def pretrained_source(name: str) -> str:
    """The folder or the hub's name in ``hf:SOURCE`` or ``hf:SOURCE[first6]``; empty for other networks."""
    parsed = _PRETRAINED.fullmatch(name)
    return parsed["source"] if parsed else ""


def source_digest(name: str) -> str:
    """What the weights are that an ``hf:`` network starts from; part of the cells that use it."""
    return digest([_sha256(path, path.stat().st_size, path.stat().st_mtime_ns) for path in _files(name)])


def _files(name: str) -> list[Path]:
    source = pretrained_source(name)
    return text.files(source) if Path(source).is_dir() else _of_hub(source)


@functools.cache
def _of_hub(source: str) -> list[Path]:
    """Asked for once, since the hub is, even where the files are here."""
    return text.files(source)


@functools.cache
def _sha256(path: Path, size: int, modified: int) -> str:
    """Of a file as it is now: another one may be saved under its name."""
    return sha256_file(path)


@functools.cache
def _positions(source: str) -> int | None:
    if source:
        text.files(source)  # which has a line for one that is not there
    return text.positions(source)


class Encoders(NetworkSource):
    """Encoders of transformers with a classification head."""

    name, modality = "encoders", "text"

    def names(self) -> list[str]:
        return list(ENCODERS)

    def has(self, name: str) -> bool:
        return name in ENCODERS or bool(pretrained_source(name))

    def weights_digest(self, name: str) -> str:
        return source_digest(name) if pretrained_source(name) else ""

    def positions(self, name: str) -> int | None:
        return None if name in MODERN_BERTS else _positions(pretrained_source(name))

    def build(self, name: str, num_classes: int, input_shape: tuple[int, ...], vocabulary: int) -> NetworkView:
        if parsed := _PRETRAINED.fullmatch(name):
            layers = (parsed["which"], int(parsed["count"])) if parsed["count"] else None
            model = text.pretrained(parsed["source"], layers, num_classes)
        else:
            make = text.bert if name in BERTS else text.modernbert
            model = make(*ENCODERS[name], vocabulary, num_classes)
        return NetworkView(model, text_view.chain, (3, text_view.LENGTH))

    def init_from(self, student: Network, teacher: Network, which: str) -> None:
        if which == "heads":
            super().init_from(student, teacher, which)
        text.init_from(student.module, teacher.module, which)  # type: ignore[arg-type]


SOURCES = (Encoders(),)
