"""The suite's own architectures, with the methods by which timm works on its models."""

# Annotations are not postponed in this file: torch.fx copies those of `forward` into the code that TorchScript reads.

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, fx, nn

from kd_methods import views
from kd_methods.contract.patches import as_map
from kd_methods.errors import UserError


class ImageClassifier(views.Architecture):
    """A classifier of images whose forward pass is its chain (see :class:`kd_methods.views.Architecture`).

    ``forward_features`` gives the last map, before the pooling, as (B, C, H, W), of a vision transformer (B, L, D);
    ``forward_head`` gives of that the logits (B, K). As a model of timm's, an instance has ``num_classes``,
    ``num_features`` (C or D), ``head_hidden_size`` (of the vector that the classifier sees), ``in_chans``,
    ``feature_info`` (of the ends of stages) and ``pretrained_cfg`` as well; see :mod:`.libraries.timm_entry`.
    """

    global_pool = "avg"
    num_classes: int
    _last_linear: tuple[str, int] | None = None

    def _units(self, x: Any) -> Iterator[tuple[str, Any]]:
        for name, run in self.chain().units:
            x = run(x)
            yield name, x

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, K) logits; of a network without classifier or pooling to what it ends in."""
        return super().forward(x) if self.global_pool else self.forward_features(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) images to the last map."""
        last = self.chain().layout.last_map
        return next(value for name, value in self._units(x) if name == last)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (B, K), or with ``pre_logits`` to the vector (B, D) that the classifier sees."""
        if not self.global_pool:
            return x
        chain = self.chain()
        for name, run in chain.units[chain.position(chain.layout.last_map) + 1 :]:
            x = run(x)
            if pre_logits and name == chain.layout.pooled:
                break
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The outputs that end stages as maps (B, C, H, W), and the last map.

        Args:
            x: (B, 3, H, W) images.
            indices: which stages, from 0, or how many of the last ones; by default all.
            norm: there is no norm to apply; taken for timm's sake.
            stop_early: leave out what follows the last of these stages.
            output_fmt: NCHW.
            intermediates_only: give the list alone, not (last map, list).

        Raises:
            UserError: another ``output_fmt``.
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt '{output_fmt}': features of kd_ networks are maps, NCHW")
        layout, ends = self.chain().layout, []
        stages = [layout.stages[i] for i in _taken(len(layout.stages), indices)]
        for name, value in self._units(x):
            if name in stages:
                ends.append(as_map(value, layout.prefix_tokens or 0) if value.dim() == 3 else value)
            if name == layout.last_map or (stop_early and name == stages[-1]):
                break
        return ends if intermediates_only else (value, ends)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the classifier, which features of stages do without; returns the stages that are meant."""
        if prune_head:
            self.reset_classifier(0)
        return _taken(len(self.chain().layout.stages), indices)

    def classifier_at(self) -> tuple[str, int]:
        """Where the last linear layer is, also when it was removed, and its number of inputs."""
        if self._last_linear is None:
            *_, (name, linear) = ((n, m) for n, m in self.named_modules() if isinstance(m, nn.Linear))
            self._last_linear = name, linear.in_features
        return self._last_linear

    def get_classifier(self) -> nn.Module:
        """The linear layer that gives the logits; an identity where it was removed."""
        return self.get_submodule(self.classifier_at()[0])

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Exchange the classifier for a new one, or for none where ``num_classes`` is 0.

        Args:
            num_classes: K.
            global_pool: ``avg``, or empty, without a classifier, to end in the last map; by default as it was, with a
                classifier ``avg``.

        Raises:
            UserError: another pooling, or a classifier without any.
        """
        pool = global_pool if global_pool is not None else "avg" if num_classes else self.global_pool
        if pool not in ("avg", "") or (num_classes and not pool):
            raise UserError(f"global_pool '{pool}': kd_ networks have avg, and without a classifier none as well")
        (path, width), like = self.classifier_at(), next(self.parameters())
        linear = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self.set_submodule(path, linear.to(like.device, like.dtype).train(self.training))
        self.num_classes, self.global_pool = num_classes, pool

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles: the pass, traced; the chain itself is Python."""
        from timm.models import get_notrace_functions

        tracer = _Tracer(autowrap_functions=tuple(get_notrace_functions()), param_shapes_constant=True)
        graph = tracer.trace(self)
        for node in graph.nodes:
            node.type = None  # a name in quotes, which torch.jit does not read
        return fx.GraphModule(self, graph)


def _taken(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Positions among ``count`` stages: all, the last so many, or those that are given, also from the end."""
    if indices is None or isinstance(indices, int):
        return list(range(count))[-(indices or count) :]
    return sorted(range(count)[i] for i in indices)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        from timm.models import get_notrace_modules

        return isinstance(m, tuple(get_notrace_modules())) or super().is_leaf_module(m, module_qualified_name)
