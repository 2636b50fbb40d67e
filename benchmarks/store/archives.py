"""Archives of a part of a store: one zip file with a digest of each of its files. Imports no torch.

What others send is taken for hostile: nothing is read before its name, kind and size are known to be an archive's, and
nothing is handed on before all of it is what the index says.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from typing_extensions import TypedDict

from kd_methods.errors import Damaged, DiskError, UserError

from ..common.files import NoFile, chunks, replaced, sha256_file
from . import documents

INDEX = "archive.json"
WEIGHTS = ".pt"
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
"""What tables and the folders of tables are called."""

MEMBER = re.compile(
    rf"runs/[0-9a-f]{{16}}/(?:(?:cell|status|metrics|environment)\.json|(?:student|checkpoint)\.pt)"
    rf"|tables/{NAME}/plan\.json|costs/[0-9a-f]{{16}}\.json|{re.escape(INDEX)}"
)
"""The names that there are: those of a store. No other can be in an archive, so nothing lands outside a folder."""

MOST_MEMBERS, MOST_OF_A_DOCUMENT, MOST_OF_ALL = 500_000, 2**26, 2**32
"""Bounds: files, bytes of one document, bytes of all documents. Weights are not compressed: the file bounds them."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
REMEDY = "nothing was taken from it; ask for the archive again"


class ArchiveIndex(TypedDict):
    """archive.json: the version of the form, and the sha256 of every other file by its name."""

    format: Literal[1]
    files: dict[str, str]


def write(file: Path, members: Mapping[str, Path]) -> None:
    """Pack files under their names in the archive; the same files give the same bytes.

    Raises:
        DiskError: a file cannot be read, or the archive not be written.
    """
    digests: dict[str, str] = {}
    with replaced(file) as target, zipfile.ZipFile(target, "w") as archive:
        for name in sorted(members):
            digest = hashlib.sha256()  # of what is packed: a table may be planned anew meanwhile
            with archive.open(_info(name), "w", force_zip64=True) as out:
                for chunk in chunks(members[name]):
                    digest.update(chunk)
                    out.write(chunk)
            digests[name] = digest.hexdigest()
        index = documents.sealed({"format": 1, "files": digests})
        archive.writestr(_info(INDEX), json.dumps(index, indent=1, sort_keys=True) + "\n")


def _info(name: str) -> zipfile.ZipInfo:
    """The same for the same name: no times, owners or permissions of this machine."""
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    info.compress_type = zipfile.ZIP_STORED if name.endswith(WEIGHTS) else zipfile.ZIP_DEFLATED
    return info


@contextmanager
def unpacked(file: Path, beside: Path | None = None) -> Iterator[Path]:
    """A folder with an archive's files, every one as the index says; it is gone afterwards.

    Args:
        file: the archive.
        beside: where the folder is made; by default where temporary files are.

    Raises:
        NoFile: there is no such file.
        DiskError: it cannot be read, or the folder not be written.
        Damaged: it is no archive, or not what was written, or holds what no archive holds.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=".kdbench-archive-", dir=beside)
    except OSError as error:
        raise DiskError(f"cannot unpack {file} in {beside or tempfile.gettempdir()}: {error.strerror}") from None
    with made as folder:
        _unpack(file, Path(folder))
        yield Path(folder)


def _unpack(file: Path, folder: Path) -> None:
    if not file.is_file():
        raise NoFile(f"there is no file {file}")
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if reason := _refusal(members, file.stat().st_size):
                raise Damaged(f"{file} is no archive of runs: {reason}; {REMEDY}")
            for member in members:
                path = folder / member.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
    except UserError:
        raise
    except OSError as error:
        raise DiskError(f"cannot unpack {file}: {error.strerror or error}") from None
    except Exception as error:  # zipfile has many, one for each field of a header
        raise Damaged(f"{file} is damaged, or no archive ({error}); {REMEDY}") from None
    index = documents.read(folder / INDEX, ArchiveIndex, REMEDY)
    there = {member.filename for member in members}
    if there != {INDEX, *index["files"]}:
        odd = min(there ^ {INDEX, *index["files"]})
        raise Damaged(f"{file} is damaged: {odd} is not both in it and in its index; {REMEDY}")
    for name, known in index["files"].items():
        if sha256_file(folder / name) != known:
            raise Damaged(f"{file} is damaged: {name} is not what was packed; {REMEDY}")


def _refusal(members: list[zipfile.ZipInfo], whole: int) -> str:
    """Why these cannot be the files of an archive of that size, known before any is read; empty where they can."""
    if len(members) > MOST_MEMBERS:
        return f"it has {len(members):,} files, at most {MOST_MEMBERS:,} are read"
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        return f"{Counter(names).most_common(1)[0][0][:80]!r} is in it more than once"
    if INDEX not in names:
        return f"it has no {INDEX}"
    size = weights = 0
    for member in members:
        name, mode = member.filename, member.external_attr >> 16
        if not MEMBER.fullmatch(name) or name != member.orig_filename:
            return f"a file is called {member.orig_filename[:80]!r}"
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or member.flag_bits & 1:
            return f"{name} is a link or device, or encrypted"
        stored = member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size
        if name.endswith(WEIGHTS):
            if not stored:
                return f"{name} is compressed, which weights never are"
            weights += member.file_size
            if weights > whole:
                return f"{name} shares its bytes with others"
            continue
        if not stored and member.compress_type != zipfile.ZIP_DEFLATED:
            return f"{name} is compressed in a way that archives of runs are not"
        size += member.file_size
        if member.file_size > MOST_OF_A_DOCUMENT or size > MOST_OF_ALL:
            return f"{name} has {member.file_size:,} bytes, {size:,} with those before it; that is no document"
    return ""
