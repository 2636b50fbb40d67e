"""Files are written whole or not at all; text, JSON and CSV have one reader each; every failure is one clear line."""

from __future__ import annotations

import csv
import fcntl
import functools
import hashlib
import io
import itertools
import json
import math
import os
import re
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from kd_methods.errors import Damaged, DiskError, UserError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Line = TypeVar("Line", bound="BaseModel")

MAX_BYTES = 2**28
"""What is larger is no file of ours, and is not read unless a caller expects it."""

_UMASK = os.umask(0)
os.umask(_UMASK)

PARTIAL = ".kdbench-partial"
"""How the names of files that are being written end. Nobody else's files do, so what a kill has left can be removed."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name, flush to the disk, rename: readers see the old file or the new one, never a part.

    Raises:
        DiskError: the folder is read-only, the disk full, or a parent is a file.
    """
    with replaced(path) as file:
        file.write(content)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """As :func:`write_bytes`, of what is written piece by piece; nothing changes where that fails.

    Raises:
        DiskError: as there.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        with os.fdopen(handle, "wb") as file:
            yield file
            os.fchmod(file.fileno(), 0o666 & ~_UMASK)  # mkstemp makes files that only their owner can read
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiskError(
            f"cannot write {path}: {reason}; choose another folder (--output, --checkpoints) or free space"
        ) from None
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """A new folder whose files stand in ``folder`` afterwards, over those of the same names; none does after an error.

    Raises:
        DiskError: ``folder`` is a file, or read-only, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=PARTIAL) as new:
            yield Path(new)
            for file in Path(new).iterdir():
                file.replace(folder / file.name)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiskError(f"cannot write {folder}: {reason}; choose another folder or free space") from None


def write_text(path: Path, content: str) -> None:
    """As :func:`write_bytes`, for UTF-8 text."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """As :func:`write_bytes`, for a JSON document with sorted keys."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


@contextmanager
def locked(folder: Path, name: str = "") -> Iterator[None]:
    """Inside, no other process is inside with the same folder and name: for files that are read and written again.

    Waits for its turn. The operating system drops the lock when its holder ends, however it ends.

    Raises:
        DiskError: the folder cannot be made, written or locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / f".{name}{'.' if name else ''}lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise DiskError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise unlockable(folder, error) from None
        yield
    finally:
        os.close(handle)


def unlockable(folder: Path, error: OSError) -> DiskError:
    """The error for a file system without locks, as Lustre is where it is not mounted with them."""
    return DiskError(f"cannot lock {folder}: {error.strerror}; choose a folder on a file system with locks")


class NoFile(UserError):
    """There is no file of that name."""


def read_bytes(path: Path, limit: float = math.inf) -> bytes:
    """A file's content.

    Raises:
        NoFile: it does not exist.
        DiskError: it cannot be read: no permission, a failing disk.
        UserError: it is a folder or a device, or has more than ``limit`` bytes.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise UserError(f"{path} is no file; give the path of one")
        if facts.st_size > limit:
            raise UserError(f"{path} has {facts.st_size:,} bytes, at most {limit:,} are read; is it the right file?")
        return path.read_bytes()
    except OSError as error:
        raise _unread(path, error) from None
    except ValueError:  # a zero byte, a lone surrogate
        raise NoFile(f"{str(path)!r} is no name of a file") from None


def _unread(path: Path, error: OSError) -> UserError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NoFile(f"there is no file {path}")
    return DiskError(f"cannot read {path}: {error.strerror or error}; mend its permissions, or give another")


def read_text(path: Path, limit: int = MAX_BYTES, remedy: str = "save it as UTF-8") -> str:
    """The text of a file in UTF-8, with or without a byte-order mark.

    Raises:
        UserError: as :func:`read_bytes`, or it is no UTF-8 (the message then ends with ``remedy``).
    """
    content = read_bytes(path, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line}: byte 0x{content[error.start]:02x} is no UTF-8 text; {remedy}") from None


_AGAIN = "mend or delete it; what the suite wrote, the next run writes again"


def read_json(path: Path, shape: Any = None, remedy: str = _AGAIN, limit: int = MAX_BYTES) -> Any:
    """A JSON document, or None where the file does not exist.

    Args:
        path: the file.
        shape: what the document must be, a type that pydantic understands; the result is then of that type.
        remedy: what to do with a damaged one.
        limit: most bytes that are read.

    Raises:
        DiskError: the file is there and cannot be read.
        Damaged: it is damaged or has another shape; file and place are named.
    """
    try:
        value = json.loads(read_text(path, limit, f"it is damaged; {remedy}"), object_pairs_hook=_object)
        return value if shape is None else shaped(value, shape, str(path), remedy, Damaged)
    except NoFile:
        return None
    except (DiskError, Damaged):
        raise
    except UserError as error:
        raise Damaged(str(error)) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise Damaged(f"{path} {where} is damaged ({error.msg}); {remedy}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # too many digits, nested too deep, too much
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error) or "too large"
        raise Damaged(f"{path} is damaged ({reason}); {remedy}") from None


def shaped(value: Any, shape: Any, where: str, remedy: str, refusal: type[UserError] = UserError) -> Any:
    """``value`` as the type ``shape``, which pydantic understands.

    Raises:
        UserError: it is of another shape (as ``refusal``); the first place that differs is named after ``where``.
    """
    from pydantic import ValidationError

    try:
        return _adapter(shape).validate_python(value)
    except ValidationError as error:
        place, message = complaint(error)
        raise refusal(f"{where}: {'.'.join(map(str, place)) or 'all of it'}: {message}; {remedy}") from None


@functools.cache
def _adapter(shape: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def complaint(error: ValidationError) -> tuple[list[str | int], str]:
    """The place and the message of what is wrong first: a misspelt key rather than its absence."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    cause = first.get("ctx", {}).get("error")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    if first["type"] == "too_short":
        message = f"at least {first['ctx']['min_length']} needed"
    if first["type"] == "string_type" and isinstance(first["input"], (bool, int, float, date)):
        message += "; put it in quotes"
    return [*first["loc"], *getattr(cause, "place", ())], message


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(key for key in keys if keys.count(key) > 1)}' is there twice")
    return content


def read_csv(path: Path, line: type[Line], remedy: str = "mend that line") -> list[Line]:
    """The lines of a CSV file with a header, each as the model ``line``; an empty field is one that is not given.

    Raises:
        UserError: no such file, a damaged one, or one with other columns or values; file and line are named.
    """
    from pydantic import ValidationError

    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    lines: list[Line] = []
    try:
        header = next(reader, [])
        needed = [name for name, field in line.model_fields.items() if field.is_required()]
        if missing := [name for name in needed if name not in header]:
            there = ", ".join(header) or "none"
            raise UserError(f"{path} line 1: there is no column '{missing[0]}' (there: {there}); {remedy}")
        if len(set(header)) != len(header):
            raise UserError(f"{path} line 1: two columns have one name; {remedy}")
        for fields in filter(None, reader):
            if len(fields) != len(header):
                counts = f"{len(fields)} fields, the header has {len(header)}"
                raise UserError(f"{path} line {reader.line_num}: {counts}; {remedy}")
            lines.append(line.model_validate({name: x for name, x in zip(header, fields, strict=True) if x}))
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}; {remedy}") from None
    except ValidationError as error:
        place, message = complaint(error)
        what = ".".join(map(str, place))
        raise UserError(f"{path} line {reader.line_num}: {what}: {message}; {remedy}") from None
    return lines


def csv_text(lines: Iterable[Iterable[object]]) -> str:
    """Lines of fields as CSV.

    Spreadsheets compute what begins like a formula. Text that does is marked as text, by a quote before it; numbers
    stay what they are.
    """
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([_plain(field) for field in line] for line in lines)
    return file.getvalue()


def _plain(field: object) -> object:
    if not isinstance(field, str):
        return field
    text = field.replace("\r", " ")  # which Python's writer leaves without quotes, and readers take as a line's end
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


_FORMULA = re.compile(r"[=+\-@\t].", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


_FOLDER = 0x10


def check_archive(content: bytes, path: Path) -> None:
    """Hold what torch.save wrote to a file against the archive's own checksums, at which torch does not look.

    What is no archive, and archives that were written without checksums, pass.

    Raises:
        Damaged: the content has changed, or is compressed.
    """
    if not content.startswith(b"PK\x03\x04"):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > len(content):
                raise Damaged(f"{path} is no readable checkpoint: it is compressed, which torch.save never does")
            changed = archive.testzip() if any(member.CRC for member in members) else None
            # torch leaves the memory of what is marked as a folder as it finds it.
            changed = changed or next((member.filename for member in members if member.external_attr & _FOLDER), None)
    except Damaged:
        raise
    except Exception as error:  # zipfile has many, one for each field of a header
        raise Damaged(f"{path} is damaged, or is truncated ({error})") from None
    if changed:
        raise Damaged(f"{path} is damaged ({changed!r} is not what was written)")


def set_aside(path: Path, why: str) -> Path:
    """Rename what cannot be used, so that nothing is lost: to NAME.WHY-1, or the next number that is free.

    Raises:
        DiskError: it cannot be renamed.
    """
    names = (path.with_name(f"{path.name}.{why}-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    try:
        return path.rename(aside)
    except OSError as error:
        raise DiskError(f"cannot rename {path} to {aside.name}: {error.strerror}") from None


def chunks(path: Path) -> Iterator[bytes]:
    """A file's content, MiB by MiB.

    Raises:
        NoFile: there is none.
        DiskError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            while piece := file.read(2**20):
                yield piece
    except OSError as error:
        raise _unread(path, error) from None


def sha256_file(path: Path) -> str:
    """Digest of a file's content.

    Raises:
        NoFile: there is none.
        DiskError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unread(path, error) from None


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, no NaN. What identities are hashed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
