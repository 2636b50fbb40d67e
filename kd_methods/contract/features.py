"""What networks compute and what is kept of it: kinds of features, a network's layout, the outputs of one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .patches import as_map

FIELDS = ("stem", "stages", "preacts", "blocks", "last_map", "pooled")
"""What can be kept of a forward pass besides the logits; see :class:`Layout`."""

MAPS = ("stem", "stages", "preacts", "last_map")
"""Those of them in which :class:`Outputs` have the tokens of patches as maps."""


Modality = Literal["images", "text", "detection"]
"""What networks read: images of one class each, texts, or images with objects to be found in them."""


class Tokens(NamedTuple):
    """Hidden states of a padded batch of texts: what the layers of a text encoder pass on.

    hidden  (B, L, D)
    inputs  (B, 3, L) ids, mask and segments that the batch began with
    calls   how this encoder's layers are called for these inputs; None where the states come from elsewhere
    """

    hidden: Tensor
    inputs: Tensor
    calls: Any = None

    @property
    def mask(self) -> Tensor:
        """(B, L), true where there is a token and no padding."""
        return self.inputs[:, 1].bool()


class Pyramid(NamedTuple):
    """A detector's maps of one batch that its region heads read, from fine to coarse, and the regions they look at.

    maps     (B, C, H_l, W_l) for every level l
    regions  (N, 5): the image's number in the batch, and the corners of a region in pixels
    """

    maps: tuple[Tensor, ...]
    regions: Tensor


class Heads(NamedTuple):
    """What a detector's heads predict for every region of a :class:`Pyramid`.

    logits  (N, K + 1), the last class is background
    boxes   (N, 4K) or (N, 4), in the heads' own code
    """

    logits: Tensor
    boxes: Tensor


class DenseHeads(NamedTuple):
    """What a one-stage detector's heads predict of every level of a :class:`Pyramid`.

    scores  (B, A K, H_l, W_l) logits of sigmoids, of A anchors at every place
    boxes   (B, A n, H_l, W_l), in the heads' own code
    """

    scores: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]


def joined(features: Sequence[Tensor | Tokens]) -> Any:
    """Features of one kind, one after another along the batch."""
    if isinstance(features[0], Tokens):
        states = [torch.cat([getattr(feature, name) for feature in features]) for name in ("hidden", "inputs")]
        return Tokens(*states)
    return torch.cat(list(features))  # type: ignore[arg-type]


class DenseOutputs(NamedTuple):
    """What a one-stage detector predicts at every place of its pyramid.

    There is one anchor at each place; they lie level by level, image by image, row by row.

    classes   (N, K) logits of sigmoids
    edges     (N, 4, n) logits of the n bins of every edge of a box
    level     (N,) number of the level, the finest is 0
    positive  (N,) whether a box is trained there
    """

    classes: Tensor
    edges: Tensor
    level: Tensor
    positive: Tensor


class AnchorRelations(NamedTuple):
    """What the places of :class:`DenseOutputs` are to the objects of a batch.

    valuable  (N,) weights of the places in :func:`functional.valuable_region`, zero elsewhere
    near      (N,) whether a place is in :func:`functional.near_region`
    """

    valuable: Tensor
    near: Tensor


@dataclass(frozen=True)
class Layout:
    """Which units of a network's chain carry the features that methods match.

    stem      the output that enters the first stage
    stages    outputs that end a resolution stage, (B, C, H, W) or (B, L, D); what most feature methods match
    preacts   the same positions before the ReLU that follows (equal to ``stages`` where there is none, and where what
              goes into it cannot be had: such a unit is among the ``rectified``)
    blocks    outputs that end the blocks of a block-wise method: as ``stages``, but layers with weights between the
              last stage and the pooling belong to the last block (Block-KD, arXiv 2411.01547; our reading)
    last_map  the map that is pooled
    pooled    the (B, D) vector that the classifier sees
    rectified the units whose outputs are non-negative by construction (they end in a ReLU)
    layers    all generalised layers in order: outputs of residual blocks, of convolutions with their ReLU, of encoder
              blocks, of the flattening (arXiv 2511.14981, as its code has them); where not given, stages and pooled
    uniform   the blocks are layers of one kind, so that networks of different depth are matched at equal shares of it
    modality  what the network reads; the features of a text encoder are :class:`Tokens`. Of a detector the stages are
              the levels of its pyramid, each (B, C, H, W), the logits are those of the regions, (N, K + 1), and the
              unit ``pyramid`` is a :class:`Pyramid`; of one-stage detectors the units ``heads``, ``dense`` and
              ``anchor_relations`` are :class:`DenseHeads`, :class:`DenseOutputs` and :class:`AnchorRelations`; it has
              no stem, preacts, blocks, last_map and pooled
    prefix_tokens  of a vision transformer, how many of its tokens stand for no patch (the class token); the others are
              a square of patches, and the fields are read as maps of it, while the units' own outputs are tokens
    softmax   whether the logits are those of a softmax; else every class has a sigmoid of its own
    trunk     of a detector, the units of its backbone whose maps (B, C, H, W) the pyramid is made of, from fine to
              coarse; after one of them it is resumed with a :class:`Pyramid` of the maps up to there
    queries, keys, values  (B, L, D) of every layer's attention, all ``heads`` side by side, where they can be had
    """

    stem: str
    stages: tuple[str, ...]
    preacts: tuple[str, ...]
    blocks: tuple[str, ...]
    last_map: str
    pooled: str
    rectified: frozenset[str] = frozenset()
    layers: tuple[str, ...] = ()
    uniform: bool = False
    modality: Modality = "images"
    prefix_tokens: int | None = None
    softmax: bool = True
    trunk: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    heads: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", self.layers or (*self.stages, self.pooled))

    @property
    def entry(self) -> str:
        """The output of the last stage's first block."""
        if len(self.stages) < 2:
            return self.stages[0]
        return self.layers[self.layers.index(self.stages[-2]) + 1]

    def units(self, fields: Iterable[str]) -> frozenset[str]:
        """The units to keep so that every field of ``fields`` can be read from the outputs."""
        names: set[str] = set()
        for name in fields:
            value = getattr(self, name)
            names.update((value,) if isinstance(value, str) else value)
        return frozenset(names)

    def absent(self, fields: Iterable[str]) -> list[str]:
        """Those of ``fields`` that this network does not have."""
        return [name for name in dict.fromkeys(fields) if name in FIELDS and not getattr(self, name)]


class Outputs:
    """What one forward pass computed and kept.

    ``logits`` (B, K), the fields of :class:`Layout`, single units (``outputs["layer3.0"]``) and the outputs of a second
    view of the same images (``outputs.second``) are there if they were asked for; reading one that was not raises
    ``LookupError``, so undeclared needs cannot hide.
    """

    def __init__(
        self, logits: Tensor | None, features: Mapping[str, Any], layout: Layout, second: Outputs | None = None
    ) -> None:
        self._logits = logits
        self._features = features
        self._layout = layout
        self._second = second
        self._unchanged: Outputs | None = None

    def __getitem__(self, unit: str) -> Any:
        try:
            return self._features[unit]
        except KeyError:
            raise LookupError(f"the output of unit '{unit}' was not kept; declare it in the method's needs") from None

    @property
    def logits(self) -> Tensor:
        if self._logits is None:
            raise LookupError("the logits were not computed; declare 'logits' in the method's needs")
        return self._logits

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that was kept."""
        features = [value.hidden if isinstance(value, Tokens) else value for value in self._features.values()]
        logits = () if self._logits is None else (self._logits,)
        return (*logits, *features, *(self._second.tensors() if self._second else ()))

    def only(
        self,
        fields: Iterable[str],
        units: Iterable[str] = (),
        second: bool = False,
        through: Callable[[str, Any], Any] = lambda unit, value: value,
    ) -> Outputs:
        """What is named of these outputs, of the second view too where it is wanted; ``"logits"`` among the fields.

        ``through`` makes of the name and value of every unit, and of the logits, the value that is kept.
        """
        fields = tuple(fields)
        names = self._layout.units(field for field in fields if field != "logits").union(units)
        features = {name: through(name, self._features[name]) for name in names}
        logits = through("logits", self._logits) if "logits" in fields and self._logits is not None else None
        other = self._second.only(fields, units, through=through) if second and self._second else None
        return Outputs(logits, features, self._layout, other)

    def rows(self, chosen: Tensor) -> Outputs:
        """Those of some samples, by their positions (M,) in the batch."""

        def of_chosen(value: Any) -> Any:
            return tree_map_only(Tensor, lambda tensor: tensor[chosen], value)

        second = self._second.rows(chosen) if self._second else None
        return Outputs(
            of_chosen(self._logits), {unit: of_chosen(x) for unit, x in self._features.items()}, self._layout, second
        )

    def each(self, through: Callable[[Tensor], Tensor]) -> Outputs:
        """These outputs of other samples: what ``through`` makes of every tensor, in every view.

        How an encoder's layers were called is not known for them.
        """
        known: dict[int, Tensor] = {}  # units may have one tensor in common

        def changed(value: Any) -> Any:
            if isinstance(value, Tokens):
                return Tokens(changed(value.hidden), changed(value.inputs))
            if isinstance(value, tuple):
                return tuple(map(changed, value))
            if id(value) not in known:
                known[id(value)] = through(value)
            return known[id(value)]

        logits = None if self._logits is None else changed(self._logits)
        features = {unit: changed(value) for unit, value in self._features.items()}
        return Outputs(logits, features, self._layout, self._second and self._second.each(through))

    def with_second(self, second: Outputs) -> Outputs:
        """These outputs, with those of the second view beside them."""
        return Outputs(self._logits, self._features, self._layout, second)

    def with_other_logits(self, logits: Tensor) -> Outputs:
        """These outputs with (B, K) logits that were computed elsewhere."""
        return Outputs(logits, self._features, self._layout, self._second)

    def with_logits(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """Nothing but the logits, changed, of every view; ``unchanged`` has what they were."""
        second = self._second.with_logits(change) if self._second else None
        changed = Outputs(change(self.logits), {}, self._layout, second)
        changed._unchanged = self
        return changed

    @property
    def unchanged(self) -> Outputs:
        """These outputs before a modifier changed the logits: what says how sure a network is."""
        return self._unchanged or self

    @property
    def second(self) -> Outputs:
        """The same network's outputs on the second view of the batch."""
        if self._second is None:
            raise LookupError("there is no second view; declare views=2 in the method's needs")
        return self._second

    def _map(self, unit: str) -> Any:
        """The output of a unit as the fields have it: tokens of patches as a map."""
        value, prefix = self[unit], self._layout.prefix_tokens
        return value if prefix is None or value.dim() != 3 else as_map(value, prefix)

    @property
    def stem(self) -> Any:
        return self._map(self._layout.stem)

    @property
    def stages(self) -> tuple[Any, ...]:
        return tuple(self._map(unit) for unit in self._layout.stages)

    @property
    def preacts(self) -> tuple[Tensor, ...]:
        return tuple(self._map(unit) for unit in self._layout.preacts)

    @property
    def blocks(self) -> tuple[Any, ...]:
        return tuple(self[unit] for unit in self._layout.blocks)

    @property
    def queries(self) -> tuple[Tensor, ...]:
        return tuple(self[unit] for unit in self._layout.queries)

    @property
    def keys(self) -> tuple[Tensor, ...]:
        return tuple(self[unit] for unit in self._layout.keys)

    @property
    def values(self) -> tuple[Tensor, ...]:
        return tuple(self[unit] for unit in self._layout.values)

    @property
    def last_map(self) -> Tensor:
        return self._map(self._layout.last_map)

    @property
    def pooled(self) -> Tensor:
        return self[self._layout.pooled]


NO_OUTPUTS = Outputs(
    None,
    {},
    Layout(
        stem="stem",
        stages=("stages",),
        preacts=("preacts",),
        blocks=("blocks",),
        last_map="last_map",
        pooled="pooled",
        queries=("queries",),
        keys=("keys",),
        values=("values",),
    ),
)
"""Of a pass that was not made: reading anything raises ``LookupError``, as for whatever else was not asked for."""
