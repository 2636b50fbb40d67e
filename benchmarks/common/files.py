"""Files are written whole or not at all, and every failure to write is one clear line."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kd_methods.errors import DiskError, UserError

_UMASK = os.umask(0)
os.umask(_UMASK)

PARTIAL = ".kdbench-partial"
"""How the names of files that are being written end. Nobody else's files do, so what a kill has left can be removed."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name, flush to the disk, rename: readers see the old file or the new one, never a part.

    Raises:
        DiskError: the folder is read-only, the disk full, or a parent is a file.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o666 & ~_UMASK)  # mkstemp makes files that only their owner can read
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise DiskError(
            f"cannot write {path}: {reason}; choose another folder (--output, --checkpoints) or free space"
        ) from None


def write_text(path: Path, content: str) -> None:
    """As :func:`write_bytes`, for UTF-8 text."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """As :func:`write_bytes`, for a JSON document with sorted keys."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process is inside with the same folder: for files that are read, changed and written again.

    Waits for its turn. The operating system drops the lock when its holder ends, however it ends.

    Raises:
        DiskError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise DiskError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_json(path: Path) -> Any:
    """A JSON document, or None where the file does not exist.

    Raises:
        UserError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); mend or delete it; what the suite wrote, the next run writes again"
        ) from None


def sha256_file(path: Path) -> str:
    """Digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, no NaN. What identities are hashed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
