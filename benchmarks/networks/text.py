"""Text encoders of transformers: from random weights, checkpoints from a folder or the hub, choices of layers."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kd_methods.errors import DiskError, UserError
from kd_methods.views.layers import evenly_spaced
from kd_methods.views.text import Cut, check

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_installed() -> None:
    """Raise UserError where the extra [text] is missing."""
    if not importlib.util.find_spec("transformers"):
        raise UserError(
            "texts need transformers, which is not installed: run a table with `extra: text`, such as table5, through "
            "./reproduce.sh, which installs the extra [text]"
        )


def bert(layers: int, width: int, heads: int, dropout: float, vocabulary: int, num_labels: int) -> PreTrainedModel:
    """A BERT with random weights."""
    check_installed()
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(  # type: ignore[call-arg]
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=num_labels,
        attn_implementation="sdpa",
    )
    return BertForSequenceClassification(config)


def modernbert(
    layers: int, width: int, heads: int, dropout: float, vocabulary: int, num_labels: int
) -> PreTrainedModel:
    """A ModernBERT with random weights: rotary positions, gated linear units, every third layer attends globally."""
    check_installed()
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    config = ModernBertConfig(  # type: ignore[call-arg]
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=3 * width // 2,
        embedding_dropout=dropout,
        mlp_dropout=dropout,
        attention_dropout=dropout,
        # Its own are numbers of its own vocabulary, which is larger.
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        cls_token_id=None,
        sep_token_id=None,
        num_labels=num_labels,
        attn_implementation="sdpa",
    )
    return ModernBertForSequenceClassification(config)


def pretrained(source: str, layers: tuple[str, int] | None, num_labels: int, trained: bool = False) -> PreTrainedModel:
    """A checkpoint of transformers with a new classifier where it has none for so many labels.

    Args:
        source: a folder, or a name on the hub.
        layers: which to keep, as ("first" | "last" | "spread", how many); None for all.
        num_labels: size of the classifier.
        trained: it has to have one.

    Raises:
        DiskError: no such folder, or nothing can be downloaded.
        UserError: it is no encoder, has no trained classifier, or the extra [text] is missing.
    """
    check_installed()
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would warn of the new classifier
    logging.disable_progress_bar()
    try:
        with _loading(source):
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                source,
                num_labels=num_labels,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    finally:
        logging.set_verbosity(level)
    drawn = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if trained and drawn:
        raise UserError(f"{source} has no trained classifier of {num_labels} classes ({drawn[0]}); fine-tune it first")
    if layers:
        shorten(model, *layers)
    return check(model)


@contextlib.contextmanager
def _loading(source: str) -> Iterator[None]:
    """What transformers says of a source that it cannot load, in one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).split(". ")[0].split("\n")[0]
        kind = DiskError if isinstance(error, OSError) else UserError
        raise kind(
            f"transformers cannot load '{source}' ({reason}); name a folder saved by save_pretrained, or be on line"
        ) from None


def configuration(source: str) -> Any:
    """The configuration that a checkpoint was saved with.

    Raises:
        DiskError: no such folder, or nothing can be downloaded.
        UserError: transformers has no such model.
    """
    check_installed()
    from transformers import AutoConfig

    with _loading(source):
        return AutoConfig.from_pretrained(source)


def positions(source: str = "") -> int | None:
    """How many positions the model of a checkpoint, else our BERTs, tells apart; None where it counts none.

    Raises:
        DiskError, UserError: as :func:`configuration`, and where that model does not classify texts.
    """
    check_installed()
    from transformers import AutoModelForSequenceClassification, BertConfig

    config = configuration(source) if source else BertConfig(num_hidden_layers=1)
    with _loading(source), torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its like count from behind the position that stands for padding.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def vocabulary(source: str) -> dict[str, int] | None:
    """The words of a checkpoint's own tokenizer, where it has one."""
    check_installed()
    from transformers import AutoTokenizer

    if _file(source, "tokenizer.json", "vocab.txt", "vocab.json") is None:
        return None
    try:
        return AutoTokenizer.from_pretrained(source).get_vocab()
    except (OSError, ValueError):
        return None


def shorten(model: PreTrainedModel, which: str, count: int) -> None:
    """Keep some of a model's layers in place: the ``first``, the ``last``, or those at equal shares (``spread``)."""
    cut = Cut(model)
    remaining = chosen(which, count, len(cut.layers))
    setattr(cut.parent, cut.name, nn.ModuleList(cut.layers[i] for i in remaining))
    model.config.num_hidden_layers = count


def chosen(which: str, count: int, of: int) -> list[int]:
    """Positions, from 0, of ``count`` layers of ``of``.

    Raises:
        UserError: there are fewer.
    """
    if count > of:
        raise UserError(f"{count} layers are wanted of a network that has {of}")
    if which == "spread":
        return evenly_spaced(count, of)
    return list(range(count)) if which == "first" else list(range(of - count, of))


def init_from(student: PreTrainedModel, teacher: PreTrainedModel, which: str) -> None:
    """Start a student from its teacher's weights: all but the layers, and a choice of those.

    Raises:
        UserError: the two are not of one family and width.
    """
    student_cut, teacher_cut = Cut(student), Cut(teacher)
    source, target = (
        next(n for n, m in cut.model.named_modules() if m is cut.layers) + "." for cut in (teacher_cut, student_cut)
    )
    weights = {key: value for key, value in teacher.state_dict().items() if not key.startswith(source)}
    for new, old in enumerate(chosen(which, len(student_cut.layers), len(teacher_cut.layers))):
        layer = teacher_cut.layers[old].state_dict()
        weights |= {f"{target}{new}.{key}": value for key, value in layer.items()}
    try:
        student.load_state_dict(weights)
    except RuntimeError:
        raise UserError(
            f"a student can start from its teacher's layers only if both are of one family and width, here "
            f"{type(student).__name__} and {type(teacher).__name__}"
        ) from None


def files(source: str) -> list[Path]:
    """The files that make a checkpoint what it is: configuration and weights.

    Raises:
        UserError: there is no such folder, and the hub does not answer.
    """
    paths = []
    for names in (("config.json",), ("model.safetensors", "pytorch_model.bin")):
        path = _file(source, *names)
        if path is None:
            raise UserError(
                f"'{source}' is no folder with {' or '.join(names)}, and the hub does not give it; check the name, or "
                "save the model there with save_pretrained"
            )
        paths.append(path)
    return paths


def _file(source: str, *names: str) -> Path | None:
    """The first of some files that a folder, or the hub, has."""
    check_installed()
    from transformers.utils import cached_file

    for name in names:
        with contextlib.suppress(OSError):
            if path := cached_file(source, name, _raise_exceptions_for_missing_entries=False):
                return Path(path)
    return None
