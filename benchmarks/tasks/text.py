"""Classification of sentences and pairs of sentences, tokenised once and held on the device; regression as well."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_methods.contract import Batch, DataInfo, Outputs
from kd_methods.errors import DiskError, UserError, first_line

from ..common.files import write_bytes
from ..common.seeding import generator, held_out
from ..common.weights import read, to_bytes
from ..config.protocol import Protocol
from ..networks import VOCABULARY, NetworkView, build_network, check_modality, pretrained_source
from ..networks.text import check_installed
from ..networks.text import vocabulary as vocabulary_of
from .base import NoData
from .images import Normalisation
from .losses import full

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EVAL_BATCH = 64
BUCKET = 50
"""Batches that are sorted by length together, so that texts of a batch are about as long."""

USUAL_TOKENIZER = "google-bert/bert-base-uncased"


@dataclass(frozen=True)
class Texts:
    """Texts, their second halves where the task is about pairs, and labels: class numbers or values."""

    first: Sequence[str]
    second: Sequence[str]
    labels: Sequence[float]


@dataclass(frozen=True)
class Encoded:
    """Token ids and segments of all texts one after another, where each begins, and the labels (N,)."""

    ids: Tensor
    segments: Tensor
    starts: Tensor
    labels: Tensor

    @property
    def lengths(self) -> Tensor:
        return self.starts.diff()

    def to(self, device: torch.device) -> Encoded:
        return Encoded(*(tensor.to(device) for tensor in (self.ids, self.segments, self.starts, self.labels)))

    def subset(self, indices: Tensor) -> Encoded:
        """The texts at some positions."""
        spans = [torch.arange(int(self.starts[i]), int(self.starts[i + 1])) for i in indices]
        tokens = torch.cat(spans)
        starts = F.pad(torch.tensor([len(span) for span in spans]).cumsum(0), (1, 0))
        return Encoded(self.ids[tokens], self.segments[tokens], starts, self.labels[indices])

    def padded(self, indices: Tensor, padding: int) -> Tensor:
        """(B, 3, L) ids, mask and segments of some texts, L the longest of them."""
        starts, lengths = self.starts[indices], self.lengths[indices]
        place = torch.arange(int(lengths.max()), device=self.ids.device)
        mask = place < lengths[:, None]
        at = (starts[:, None] + place).clamp(max=len(self.ids) - 1)
        ids = torch.where(mask, self.ids[at].long(), padding)
        segments = torch.where(mask, self.segments[at].long(), 0)
        return torch.stack([ids, mask.long(), segments], 1)


@dataclass(eq=False)
class TextTask:
    """A task over texts that fit in memory.

    Args:
        name: how protocols and the command line call it.
        labels: names of the classes in order; none for a regression.
        load: reads the splits from the data root, ``train``, ``test`` and further test sets; the second argument says
            whether it may download.
        score: predictions (class numbers or values) and references to metrics in percent.
        metric: the one that progress shows and that picks the best epoch.
        official: rows of the official splits; others are named in every table.
        metrics: all that ``score`` gives, and of further test sets those with their suffix, where that is known.
        vocabulary: all words, where the task brings its own; else a WordPiece vocabulary is looked for.
        version: raised when reading or tokenising is mended; part of every cell.
        usual_protocol: under which teachers of it are verified.
    """

    name: str
    labels: tuple[str, ...]
    load: Callable[[Path, bool], dict[str, Texts]]
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    metric: str
    official: Mapping[str, int] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    version: int = 1
    usual_protocol: str = "glue-ft"
    _cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    modality = "text"
    size = 0
    official_fingerprint = ""
    """Not known: it depends on the tokenizer."""

    @property
    def metrics_held_out(self) -> tuple[str, ...]:
        """Those of rows of the training set that stand for all test sets."""
        further = tuple(split.removeprefix("test") for split in self.official if split not in ("train", "test"))
        return tuple(name for name in self.metrics if not (further and name.endswith(further)))

    @property
    def official_samples(self) -> int:
        return self.official.get("train", 0)

    @property
    def num_classes(self) -> int:
        return len(self.labels) or 1

    def read(self, root: Path, download: bool = True) -> dict[str, Texts]:
        """The splits; read once per process.

        Raises:
            UserError: no data; the message says where to put it.
        """
        if root not in self._cache:
            self._cache[root] = self.load(root, download)
        return self._cache[root]

    def tokenizer(self, root: Path, protocol: Protocol) -> PreTrainedTokenizerFast:
        """The protocol's tokenizer, else WordPiece over ``vocab.txt`` of the data root, else bert-base-uncased's.

        Raises:
            UserError: none can be had.
        """
        key = (root, protocol.tokenizer)
        if key not in self._cache:
            self._cache[key] = _tokenizer(self.vocabulary, root, protocol.tokenizer)
        return self._cache[key]

    def fingerprint(self, root: Path, protocol: Protocol) -> str:
        key = (root, protocol.tokenizer, "fingerprint")
        if key not in self._cache:
            content = hashlib.sha256(self.tokenizer(root, protocol).backend_tokenizer.to_str().encode())
            for name, texts in self.read(root).items():
                content.update(json.dumps([name, list(texts.first), list(texts.second), list(texts.labels)]).encode())
            self._cache[key] = content.hexdigest()
        return self._cache[key]

    def samples(self, root: Path, download: bool = True) -> int:
        return len(self.read(root, download)["train"].labels)

    def deviations(self, root: Path) -> tuple[str, ...]:
        rows = {name: len(texts.labels) for name, texts in self.read(root).items()}
        return tuple(
            f"{self.name} has {rows[name]} rows of {name}, officially {count}"
            for name, count in self.official.items()
            if rows.get(name, 0) != count
        )

    def open(self, root: Path, protocol: Protocol, device: torch.device) -> TextData:
        if protocol.label_noise or not protocol.max_length:
            wrong = "exchanges labels" if protocol.label_noise else "has no max_length"
            raise UserError(f"protocol {protocol.name} {wrong}; task {self.name} is one of texts")
        tokenizer = self.tokenizer(root, protocol)
        if protocol.max_length <= (marks := tokenizer.num_special_tokens_to_add(pair=True)):
            raise UserError(
                f"protocol {protocol.name}: max_length {protocol.max_length} leaves no room beside {marks} marks"
            )
        splits = {
            name: _encoded(texts, tokenizer, protocol.max_length, regression=not self.labels)
            for name, texts in self.read(root).items()
        }
        return TextData(self, splits, tokenizer, protocol, device)


class TextBatch:
    """Padded texts of one step."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch.labels)

    def part(self, rows: slice) -> TextBatch:
        whole = self._batch
        return TextBatch(Batch(whole.inputs[rows], whole.labels[rows], whole.indices[rows], whole.task_loss))

    def student(self, views: int = 1) -> Batch:
        return self._batch

    def inputs(self, normalisation: Normalisation, view: int = 1) -> Tensor:
        return self._batch.inputs

    def as_taught(self) -> TextBatch:
        return self

    def answer(self, outputs: Outputs) -> Outputs:
        return outputs


class TextData:
    """See :class:`benchmarks.tasks.TaskData`."""

    answered = None

    def __init__(
        self,
        task: TextTask,
        splits: Mapping[str, Encoded],
        tokenizer: PreTrainedTokenizerFast,
        protocol: Protocol,
        device: torch.device,
    ) -> None:
        train, tests = splits["train"], {name: split for name, split in splits.items() if name != "train"}
        if protocol.holdout:
            trained_on, held = held_out(len(train.labels), protocol.holdout)
            train, tests = train.subset(trained_on), {"test": train.subset(held)}
        self.task, self.protocol, self.device, self.tokenizer = task, protocol, device, tokenizer
        self.train, self.tests = train.to(device), {name: split.to(device) for name, split in tests.items()}
        self.info = DataInfo(len(train.labels), task.num_classes, train.labels)
        self.test_samples = len(tests["test"].labels)
        self.padding = tokenizer.pad_token_id or 0

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy; of a regression the mean squared error."""
        logits = full(logits)
        return F.mse_loss(logits[:, 0], labels) if self.info.regression else F.cross_entropy(logits, labels)

    def _batch(self, split: Encoded, indices: Tensor) -> TextBatch:
        inputs = split.padded(indices, self.padding)
        return TextBatch(Batch(inputs, split.labels[indices], indices, self.loss))

    def build(self, network: str, trained: bool = False) -> NetworkView:
        check_modality(network, self.protocol.task, "text")
        view = build_network(network, self.info.num_classes, vocabulary=len(self.tokenizer))
        if source := pretrained_source(network):
            self._check_vocabulary(view, source)
        return view.to(self.device)

    def _check_vocabulary(self, view: NetworkView, source: str) -> None:
        network_vocabulary = vocabulary_of(source)  # where there is none, the size has to do
        size = view.module.get_input_embeddings().num_embeddings  # type: ignore[operator]
        if size < len(self.tokenizer) or (network_vocabulary and network_vocabulary != self.tokenizer.get_vocab()):
            raise UserError(
                f"'{source}' reads with another vocabulary than the task's; give the protocol `tokenizer: {source}`"
            )

    def batches(self, seed: int, epoch: int, start: int = 0) -> Iterator[TextBatch]:
        size, count = self.protocol.batch_size, self.info.num_samples
        draws = generator(seed, "order", epoch)
        order, lengths = torch.randperm(count, generator=draws), self.train.lengths.cpu()
        if self.protocol.drop_last:  # before texts are sorted: else it would always be the longest that are left out
            order = order[: count // size * size]
        cut: list[Tensor] = []
        for bucket in order.split(BUCKET * size):
            cut += bucket[lengths[bucket].argsort(stable=True)].split(size)
        assert len(cut) == self.protocol.steps_on(count)
        for place in torch.randperm(len(cut), generator=draws)[start:].tolist():
            yield self._batch(self.train, cut[place].to(self.device))

    def clean(self, indices: Tensor, test: bool = False) -> TextBatch:
        return self._batch(self.tests["test"] if test else self.train, indices.to(self.device))

    def cleaned(self, indices: Tensor, size: int) -> Iterator[TextBatch]:
        return map(self.clean, indices.split(size))

    def augmented(self, seed: int, size: int) -> Iterator[TextBatch]:
        return self.cleaned(torch.arange(self.info.num_samples), size)

    def evaluate(
        self, predict: Callable[[Tensor], Mapping[str, Tensor]], normalisation: Normalisation | None = None
    ) -> dict[str, dict[str, float]]:
        metrics: dict[str, dict[str, float]] = {}
        for split_name, split in self.tests.items():
            suffix = split_name.removeprefix("test")
            order = split.lengths.argsort(stable=True)
            answers_of: dict[str, list[Tensor]] = {}
            with torch.no_grad():
                for indices in order.split(EVAL_BATCH):
                    for name, logits in predict(split.padded(indices, self.padding)).items():
                        answers = logits[:, 0] if self.info.regression else logits.argmax(1)
                        answers_of.setdefault(name, []).append(answers)
            references = split.labels[order].cpu().numpy()
            for name, answers_by_batch in answers_of.items():
                scores = self.task.score(torch.cat(answers_by_batch).float().cpu().numpy(), references)
                metrics.setdefault(name, {}).update({f"{key}{suffix}": value for key, value in scores.items()})
        return metrics


SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Words that every vocabulary of BERT's has."""


def _tokenizer(vocabulary: Sequence[str], root: Path, name: str) -> PreTrainedTokenizerFast:
    check_installed()
    # ``vocab=`` alone: to BertTokenizerFast of transformers 5 ``vocab_file=`` says nothing, and it knows five words.
    from transformers import AutoTokenizer
    from transformers.models.bert import BertTokenizerFast  # type: ignore[attr-defined]

    if vocabulary:
        return BertTokenizerFast(vocab={word: i for i, word in enumerate((*SPECIAL, *vocabulary))})
    file = next((place for place in (root / "vocab.txt", root / "bert" / "vocab.txt") if place.is_file()), None)
    if file and not name:
        return BertTokenizerFast(vocab=_words(file))
    try:
        return AutoTokenizer.from_pretrained(name or USUAL_TOKENIZER)  # type: ignore[return-value]
    except (OSError, ValueError) as error:
        reason = str(error).split(". ")[0].split("\n")[0]
        raise NoData(
            f"no tokenizer '{name or USUAL_TOKENIZER}' ({reason}); put BERT's vocab.txt into {root}, or name a folder "
            "as the protocol's tokenizer"
        ) from None


def _words(file: Path) -> dict[str, int]:
    """The words of a ``vocab.txt`` by their line, from 0.

    Raises:
        UserError: it is no vocabulary of BERT's.
    """
    try:
        words = [word.rstrip() for word in file.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    except (OSError, UnicodeError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); put BERT's vocab.txt there") from None
    if absent := [word for word in SPECIAL if word not in words]:
        raise UserError(f"{file} has no line {', '.join(absent)}; put BERT's vocab.txt there")
    if len(set(words)) < len(words):
        twice = next(word for i, word in enumerate(words) if word in words[:i])
        raise UserError(f"{file} has the word '{twice}' twice; put BERT's vocab.txt there")
    return {word: i for i, word in enumerate(words)}


def _encoded(texts: Texts, tokenizer: PreTrainedTokenizerFast, max_length: int, regression: bool) -> Encoded:
    """Tokenised and cut, out of the cache where the same was tokenised before."""
    text = json.dumps([list(texts.first), list(texts.second), tokenizer.backend_tokenizer.to_str(), max_length])
    path = _cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.pt"
    labels = torch.tensor(texts.labels, dtype=torch.float32 if regression else torch.int64)
    try:
        encoded = read(path) if path.is_file() else None
    except UserError:
        encoded = None
    if encoded is None:
        second = list(texts.second) or None
        # A call leaves its truncation in the tokenizer, whose state is a part of fingerprints and of the cache's keys.
        tokens = copy.deepcopy(tokenizer)(
            list(texts.first), second, truncation=True, max_length=max_length, return_token_type_ids=True
        )
        starts = F.pad(torch.tensor([len(ids) for ids in tokens["input_ids"]]).cumsum(0), (1, 0))
        flat = {
            name: torch.from_numpy(np.concatenate([np.asarray(row, kind) for row in tokens[name]]))
            for name, kind in (("input_ids", np.int32), ("token_type_ids", np.uint8))
        }
        encoded = {"ids": flat["input_ids"], "segments": flat["token_type_ids"], "starts": starts}
        with contextlib.suppress(OSError, DiskError):  # no place to keep it: tokenised again next time
            write_bytes(path, to_bytes(encoded))
    return Encoded(**encoded, labels=labels)


def words(weights: Mapping[str, Tensor]) -> int:
    """How many words an encoder with these weights reads; of other networks' weights any number."""
    sizes = (len(value) for name, value in weights.items() if name.endswith("word_embeddings.weight"))
    return next(sizes, VOCABULARY)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kd-benchmark" / "tokens"
