"""Transformers' encoders with a classification head as chains of layers.

The library's own forward pass is cut at its layers, whatever the family: what lies before them is run with layers that
only record how they are called, what lies behind them with layers that pass on given states.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..contract import Layout, Tokens
from ..errors import UserError
from .chain import Chain
from .modes import modes_kept
from .network import example_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROJECTIONS = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    tuple("qkv"),
)
"""What families call the three projections of self-attention."""

LENGTH = 8
"""Tokens of an example input; encoders take any length."""


class _Recording(nn.Module):
    """Stands for a layer: records how it is called and passes on given states, or those that it gets."""

    got: Tensor

    def __init__(self, layer: nn.Module, like: int | None) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple: no part of the model, which may read its attributes
        self.like = like
        self.states: Tensor | None = None
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"][0], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.call = (args, kwargs)
        self.got = hidden
        out = hidden if self.states is None else self.states
        # Layers that return a tuple have the states first.
        return out if self.like is None else (out, *[None] * (self.like - 1))


class Cut:
    """A sequence classification model of transformers, cut at its layers.

    Args:
        model: for example a ``BertForSequenceClassification``.

    Raises:
        UserError: its layers, or the linear map that gives the logits, cannot be found.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        config: Any = model.config
        base = getattr(model, model.base_model_prefix)
        places = [
            (module, name, child)
            for module in base.modules()
            for name, child in module.named_children()
            if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
        ]
        outputs = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == config.num_labels]
        if not places or not outputs:
            missing = "layers" if not places else "classifier"
            raise UserError(f"the {missing} of {type(model).__name__} cannot be found; use an encoder built like BERT")
        self.parent, self.name, self.layers = places[0]
        self.classifier = outputs[-1]
        accepted = inspect.signature(model.forward).parameters
        # Families without segments take none, or have an embedding for one.
        self.segments = "token_type_ids" in accepted and getattr(config, "type_vocab_size", 1) > 1
        self.like = self._like()

    def _like(self) -> int | None:
        """How many values a layer returns, or None for the states alone."""
        outputs: list[Any] = []
        hook = self.layers[0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            with modes_kept(self.model), torch.no_grad():
                self.model.eval()
                self._call(example_text(2, LENGTH, self.model.device))
        finally:
            hook.remove()
        return len(outputs[0]) if isinstance(outputs[0], tuple) else None

    def _call(self, x: Tensor) -> Tensor:
        segments = {"token_type_ids": x[:, 2]} if self.segments else {}
        return self.model(input_ids=x[:, 0], attention_mask=x[:, 1], **segments).logits

    @contextlib.contextmanager
    def _with(self, layers: list[_Recording]) -> Iterator[None]:
        self.parent._modules[self.name] = nn.ModuleList(layers)
        try:
            yield
        finally:
            self.parent._modules[self.name] = self.layers

    def enter(self, x: Tensor) -> Tokens:
        """(B, 3, L) inputs to the states that enter the first layer, and how each layer is called."""
        recording = [_Recording(layer, self.like) for layer in self.layers]
        with self._with(recording):
            self._call(x)
        return Tokens(recording[0].got, x, [layer.call for layer in recording])

    def layer(self, index: int, x: Tokens) -> Tokens:
        """The states after a layer."""
        calls = x.calls
        if calls is None:  # the states come from another network, or from several passes
            with torch.no_grad():
                calls = self.enter(x.inputs).calls
        args, kwargs = calls[index]
        out = self.layers[index](x.hidden, *args, **kwargs)
        return Tokens(out[0] if isinstance(out, tuple) else out, x.inputs, calls)

    def leave(self, x: Tokens) -> Tensor:
        """The states after the last layer to the vector (B, D) that the classifier sees, in training with dropout."""
        seen: list[Tensor] = []
        hook = self.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        recording = [_Recording(layer, self.like) for layer in self.layers]
        recording[-1].states = x.hidden
        try:
            with self._with(recording):
                self._call(x.inputs)
        finally:
            hook.remove()
        return seen[0]


def chain(model: Any) -> Chain:
    """Embeddings, layers, what pools them, classifier; see :class:`Cut`.

    Raises:
        UserError: a model that cannot be cut.
    """
    cut = Cut(model)
    names = tuple(f"layer.{i + 1}" for i in range(len(cut.layers)))
    units: list[tuple[str, Any]] = [("embeddings", cut.enter)]
    units += [(name, partial(cut.layer, i)) for i, name in enumerate(names)]
    units += [("pooled", cut.leave), ("classifier", cut.classifier)]
    taps = {
        f"{name}.{what}": module for name, layer in zip(names, cut.layers, strict=True) for what, module in _taps(layer)
    }
    whole = len(taps) == 3 * len(names)
    projections = [tuple(f"{name}.{what}" for name in names) if whole else () for what in ("query", "key", "value")]
    layout = Layout(
        stem="embeddings",
        stages=names,
        preacts=names,
        blocks=names,
        last_map=names[-1],
        pooled="pooled",
        uniform=True,
        modality="text",
        queries=projections[0],
        keys=projections[1],
        values=projections[2],
        heads=model.config.num_attention_heads,
    )
    return Chain(tuple(units), layout, taps)


def _taps(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    linear = {
        name.rpartition(".")[2]: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)
    }
    for names in PROJECTIONS:
        if set(names) <= set(linear):
            return [(what, linear[name]) for what, name in zip(("query", "key", "value"), names, strict=True)]
    return []


def check(model: PreTrainedModel) -> PreTrainedModel:
    """The model, if its layers one after another give what it gives itself.

    Raises:
        UserError: they do not: its layers are not all there is between embeddings and head.
    """
    cut = Cut(model)
    x = example_text(2, LENGTH, model.device)
    x[1, 1, LENGTH // 2 :] = 0
    with modes_kept(model), torch.no_grad():
        model.eval()
        whole = cut._call(x)
        y: Any = x
        for _, run in chain(model).units:
            y = run(y)
    if not torch.allclose(whole, y, rtol=1e-4, atol=1e-5):
        raise UserError(f"{type(model).__name__} cannot be cut at its layers; use an encoder built like BERT")
    return model
