"""Teachers: entries with sources, normalisation and expected accuracy; files added, fetched and verified."""

from __future__ import annotations

import http.client
import re
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from kd_methods.errors import UserError, unknown

from ..common.files import complaint, locked, read_bytes, read_json, set_aside, sha256_file, write_bytes, write_json
from ..common.places import PROGRAM, PUBLISHED
from ..common.weights import fit, load_weights, take, to_bytes, weights_digest
from ..common.yaml_files import read_yaml
from ..config.protocol import Protocol
from ..config.recipe import Means, Stds
from ..networks import build_network, published, publisher, text
from ..store.cell import TeacherRef
from ..tasks import TaskData, get_task
from ..tasks.text import TextTask, words

TOLERANCE = 0.1
"""Percentage points by which a measured accuracy may differ from the expected one."""


class Teacher(BaseModel):
    """An entry: what the teacher is, where its file comes from, and what it must measure.

    ``origin`` names the set of teachers that published numbers stand on (``crd`` for RepDistiller's). ``weights`` is
    the digest of the tensors themselves, so a re-saved file is recognised; ``sha256`` the digest (or its beginning)
    of the file at ``sources``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    network: str
    task: str
    mean: Means = ()
    std: Stds = ()
    expected: float | None = Field(None, allow_inf_nan=False, le=100)
    expected_source: str = ""
    origin: str = ""
    sources: tuple[str, ...] = ()
    member: str = ""
    sha256: str = ""
    weights: str = ""


def make_entry(**values: Any) -> Teacher:
    """An entry of the user's own.

    Raises:
        UserError: a name that is no file name, or a value of the wrong kind.
    """
    try:
        return Teacher(**values)
    except ValidationError as error:
        place, message = complaint(error)
        raise UserError(f"teacher {place[0]} {values.get(str(place[0]))!r}: {message}") from None


class Zoo:
    """The entries that ship with the suite and those that the user added, and the files that are installed.

    Args:
        folder: where checkpoints and the user's entries live.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shipped = read_yaml(PUBLISHED / "teachers.yaml")
        common = shipped.pop("defaults")
        self.shipped = {
            name: Teacher(**{**common[entry["origin"]], **entry, "name": name}) for name, entry in shipped.items()
        }
        self.added = self._recorded()
        self.replaced: list[Path] = []
        """Under which names files are kept that others took the place of."""

    def _recorded(self) -> dict[str, Teacher]:
        path = self.folder / "teachers.json"
        return read_json(path, dict[str, Teacher], "mend it or move it away") or {}

    @property
    def entries(self) -> dict[str, Teacher]:
        return {**self.shipped, **self.added}

    def get(self, name: str) -> Teacher:
        if name not in self.entries:
            raise unknown("teacher", name, self.entries)
        return self.entries[name]

    def path(self, entry: Teacher) -> Path:
        """Where the entry's weights lie, or would."""
        return self.folder / entry.task / f"{entry.name}.pt"

    def ref(self, entry: Teacher) -> TeacherRef:
        """An installed entry as part of a cell's identity."""
        weights = weights_digest(load_weights(self.path(entry)))
        return TeacherRef(entry.network, entry.mean, entry.std, weights=weights, entry=entry.name)

    def wanted(self, name: str) -> Teacher:
        """An entry by name, or one for weights that a source of networks publishes, as ``timm:NAME.TAG``.

        Raises:
            UserError: neither is known.
        """
        library, colon, weights = name.partition(":")
        return make_entry(**published(library, weights)) if colon else self.get(name)

    def installed(self, network: str, task: str) -> Teacher | None:
        """The installed entry to use for a network: one of the user's own, a shipped one, one that a library has."""
        brought = [entry for entry in self.added.values() if not entry.origin]
        fetched = [entry for entry in self.added.values() if entry.origin]
        for entries in (brought, [*self.shipped.values()], fetched):
            fitting = [e for e in entries if (e.network, e.task) == (network, task) and self.path(e).is_file()]
            if len(fitting) > 1:
                fitting = [e for e in fitting if e.name == network] or fitting[:1]
            if fitting:
                return fitting[0]
        return None

    def add(
        self,
        entry: Teacher,
        file: Path,
        keep_normalisation: bool = False,
        which: str = "",
        report: Callable[[str], None] = lambda _: None,
        labels: Sequence[str] = (),
    ) -> Teacher:
        """Install a file, under an entry of its own or as the shipped entry of that name.

        Known weights bring their normalisation and expected accuracy. A file installed as a shipped entry is held to
        that entry's accuracy before its first use.

        Args:
            entry: what the user says of the file.
            file: the checkpoint; of a text encoder also the folder that transformers saved it in.
            keep_normalisation: the entry's normalisation was given by the user and stays.
            which: where in the file the weights lie, such as ``state_dict_ema``; by default the first that fit.
            report: called with which of several were taken.
            labels: the classes of a text encoder in its own order, by the task's names.

        Raises:
            UserError: the file cannot be read, is not of the entry's architecture, or has nothing under ``which``; or
                the name is that of a teacher of another task.
        """
        if (earlier := self.added.get(entry.name)) and earlier.task != entry.task:
            raise UserError(
                f"teacher '{entry.name}' is one of task {earlier.task} ({self.path(earlier)}); choose another name"
            )
        shipped = self.shipped.get(entry.name)
        entry = shipped or entry
        task = get_task(entry.task)
        if file.is_dir():
            if which:
                raise UserError(f"{file} is a folder, in which there is one set of weights; leave out --weights")
            weights = saved_encoder(file, task, labels, report)
            weights = fit(weights, _module(entry, weights), str(file))
        else:
            if labels:
                raise UserError(f"--labels tells the classes of a folder that transformers saved; {file} is a file")
            weights = _taken(entry, file, which, report)
        digest = weights_digest(weights)
        known = next((e for e in self.shipped.values() if e.weights == digest), None)
        update: dict[str, Any] = {"weights": digest}
        if known:
            brought = {"origin"}
            brought |= set() if keep_normalisation else {"mean", "std"}
            brought |= {"expected", "expected_source"} if entry.expected is None else set()
            update |= known.model_dump(include=brought)
        self._install(entry, weights)
        if shipped:
            return shipped
        entry = entry.model_copy(update=update)
        self._save(entry)
        return entry

    def _install(self, entry: Teacher, weights: dict[str, Tensor]) -> None:
        """Write an entry's file; another one that was there is kept beside it: it may be the only copy."""
        path, content = self.path(entry), to_bytes(weights)
        if path.is_file():
            if read_bytes(path) == content:
                return
            self.replaced.append(set_aside(path, "replaced"))
        write_bytes(path, content)

    def _save(self, entry: Teacher) -> None:
        with locked(self.folder):  # another process may have added one since
            self.added = {**self._recorded(), entry.name: entry}
            write_json(
                self.folder / "teachers.json", {name: e.model_dump(mode="json") for name, e in self.added.items()}
            )

    def fetch(self, entries: Sequence[Teacher], report: Callable[[str], None]) -> None:
        """Download entries, each source once; check and install their files.

        Raises:
            UserError: no source of an entry answers, or a digest is not the entry's.
        """
        with tempfile.TemporaryDirectory() as folder:
            fetched: dict[str, Path] = {}
            for entry in entries:
                file = self._download(entry, fetched, Path(folder), report)
                if entry.member:
                    file = _extract(file, entry.member, Path(folder))
                digest = sha256_file(file)
                if entry.sha256 and not digest.startswith(entry.sha256):
                    raise UserError(
                        f"teacher '{entry.name}': sha256 of the download is {digest}, expected {entry.sha256}"
                    )
                if not entry.sha256 and not publisher(entry.sources[0]):
                    report(f"no digest is published for {entry.name}; its accuracy is the check (sha256 {digest})")
                self._install(entry, _taken(entry, file, "", report))
                if entry.name not in self.shipped:
                    self._save(entry)
                report(f"installed {entry.name}; check it with: {PROGRAM} teachers verify {entry.name}")

    def _download(self, entry: Teacher, fetched: dict[str, Path], folder: Path, report: Callable[[str], None]) -> Path:
        """The file of the first source that answers; ``fetched`` holds what is there already."""
        problems = []
        for source in entry.sources:
            if source in fetched:
                return fetched[source]
            target = folder / f"download{len(fetched)}"
            report(f"fetching {source}")
            try:
                if library := publisher(source):
                    write_bytes(target, to_bytes(library.downloaded(source.partition(":")[2])))
                    return target
                with urllib.request.urlopen(source, timeout=30) as answer, target.open("wb") as file:
                    while chunk := answer.read(1 << 20):
                        file.write(chunk)
            except (OSError, http.client.HTTPException) as error:
                problems.append(f"{source}: {getattr(error, 'reason', None) or error}")
                continue
            fetched[source] = target
            return target
        known = "" if entry.name in self.shipped else f" --network {entry.network} --task {entry.task}"
        raise UserError(
            f"teacher '{entry.name}' cannot be fetched ({'; '.join(problems) or 'it has no source'}); "
            f"install a file you have with: teachers add {entry.name} FILE{known}"
        )

    def measure(self, entry: Teacher, protocol: Protocol, data_root: Path, device: torch.device) -> Mapping[str, float]:
        """The metrics of the installed file on its test set, under the entry's own normalisation."""
        weights = load_weights(self.path(entry))
        data = get_task(entry.task).open(data_root, protocol, device)
        network = data.build(entry.network)
        fit(weights, network.module, str(self.path(entry)))
        return metrics(data, network, entry)


def _taken(entry: Teacher, file: Path, which: str, report: Callable[[str], None]) -> dict[str, Tensor]:
    """The weights in a file that are the entry's; where others could have been meant, says which."""
    taken = take(file, partial(_module, entry), which)
    if taken.others:
        report(
            f"{file.name}: took the weights under '{taken.name}'; others that fit are under {', '.join(taken.others)} "
            "(teachers add --weights)"
        )
    return taken.weights


def _module(entry: Teacher, weights: dict[str, Tensor]) -> nn.Module:
    """The architecture of an entry, for its task's classes and size of images."""
    task = get_task(entry.task)
    return build_network(entry.network, task.num_classes, (3, task.size, task.size), vocabulary=words(weights)).module


def saved_encoder(
    folder: Path, task: Any, labels: Sequence[str] = (), report: Callable[[str], None] = lambda _: None
) -> dict[str, Tensor]:
    """The weights of a fine-tuned encoder in a folder of transformers, its classes in the task's order.

    Checkpoints order their classes differently (MNLI is the known trap), so the rows of the classifier are put in the
    task's order, by ``labels`` or by the names that the folder has; where those are numbers, that is reported.

    Args:
        folder: what ``save_pretrained`` wrote.
        task: a task of texts.
        labels: the checkpoint's classes in its own order, by the task's names; in place of the folder's names.
        report: called with what was taken for granted.

    Raises:
        UserError: a task of images, no such model, or classes that are not the task's.
    """
    if not isinstance(task, TextTask):
        raise UserError(f"{folder} is a folder; task {task.name} is one of images, whose teachers are files")
    model = text.pretrained(str(folder), None, task.num_classes, trained=True)
    config: Any = text.configuration(str(folder))
    labelled = [str(config.id2label[i]) for i in sorted(config.id2label)]
    if len(labelled) != task.num_classes:
        raise UserError(
            f"{folder} has {len(labelled)} classes ({', '.join(labelled)}), task {task.name} has {task.num_classes}"
        )
    if task.labels:
        order, numbered = class_order(labels or labelled, task.labels)
        if order is None:
            given = f"--labels {','.join(labels)}" if labels else f"{folder} has the classes {', '.join(labelled)}"
            raise UserError(
                f"{given}; {task.name} has {', '.join(task.labels)}; give the task's names in the checkpoint's order, "
                f"such as --labels {','.join(task.labels)}"
            )
        if numbered and not labels:
            meaning = ", ".join(f"{labelled[place]} is {name}" for place, name in zip(order, task.labels, strict=True))
            report(f"{folder} numbers its classes; taken as {task.name} does: {meaning}; --labels is for another order")
        classifier = text.Cut(model).classifier
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.copy_(parameter[order].clone())
    return dict(model.state_dict())


def class_order(given: Sequence[str], wanted: Sequence[str]) -> tuple[list[int] | None, bool]:
    """The place among a checkpoint's classes of each class of a task, and whether numbers alone tell.

    Names may differ in case and in what stands between words; they may be shortened (``neg``), or be the numbers of
    the classes (``0``, ``LABEL_0``, ``Label 0``). None where it is not clear which is which.
    """
    names, known = ([re.sub(r"[\s_-]+", "_", name.strip().lower()) for name in both] for both in (given, wanted))
    numbers = [re.fullmatch(r"(?:label_?|class_?)?(\d{1,9})", name) for name in names]
    if all(numbers):
        order = [int(number[1]) for number in numbers if number]
    else:
        fitting = [[name] if name in known else [k for k in known if name and k.startswith(name)] for name in names]
        order = [known.index(meant[0]) if len(meant) == 1 else -1 for meant in fitting]
    if sorted(order) != list(range(len(wanted))):
        return None, False
    return [order.index(place) for place in range(len(wanted))], all(numbers)


def metrics(data: TaskData, network: Any, entry: Teacher) -> Mapping[str, float]:
    """What a teacher measures, computed with the folded network that training uses."""
    module = network.fold_batch_norms().plain()
    return data.evaluate(lambda x: {"": module(x)}, (entry.mean, entry.std))[""]


def _extract(archive: Path, member: str, folder: Path) -> Path:
    """One regular file out of a tar, written under a name of ours: nothing can land outside ``folder``."""
    try:
        with tarfile.open(archive) as tar:
            source = tar.extractfile(member)
            content = source.read() if source else None
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise UserError(f"the archive is damaged or holds no file {member} ({error}); fetch it again") from None
    if content is None:
        raise UserError(f"{member} in the archive is no file")
    target = folder / "member"
    target.write_bytes(content)
    return target
