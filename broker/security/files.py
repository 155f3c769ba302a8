"""Files with secrets, replaced as a whole. This module does output."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.errors import InvalidValue


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces a file, so that whoever reads it finds the old one or the new one.

    Args:
        path: of the file.
        data: what it is to hold.
        mode: who may read it; by default its owner alone.

    Raises:
        InvalidValue: it cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InvalidValue("file", str(path), f"cannot be written: {error.strerror}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Commands that change files of one folder at the same time do so one after the other.

    Raises:
        InvalidValue: there is no such folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InvalidValue("folder", str(folder), f"cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
