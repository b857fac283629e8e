"""Checkpoint files: arrays and a JSON description in one ``.npz``, written at once or not at all.

A checkpoint is read without running code from it: NumPy arrays of numbers (``allow_pickle`` is off) and
text. Key ``meta`` is the description, UTF-8 JSON as bytes; ``format`` and ``version`` are checked here,
everything else by the agent that wrote it.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controllers.iab.problem import SolveError

FORMAT = "twinbed-checkpoint"
VERSION = 1
_META = "meta"
# Arrays and description, unpacked; PHaul for 1000 flows has less.
_MOST_BYTES = 1 << 30
# What reading an archive, its arrays or its description raises where a byte is wrong.
_DAMAGED = (
    *(ValueError, TypeError, EOFError, KeyError, NotImplementedError, MemoryError, OverflowError, RecursionError),
    *(RuntimeError, zlib.error, zipfile.BadZipFile),
)


class CheckpointError(SolveError):
    """A checkpoint that cannot be used here; one line that names the file and the difference."""


def write(path: Path, agent: str, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a checkpoint; the file appears under its name when it is complete.

    The same content gives the same bytes. CheckpointError when it cannot be written.
    """
    description = {"format": FORMAT, "version": VERSION, "agent": agent, **meta}
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    packed: dict[str, Any] = {_META: np.frombuffer(text.encode(), dtype=np.uint8), **arrays}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **packed)
    write_whole(path, buffer.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file such that a reader, or a kill at any moment, finds the old content or the new."""
    # Always the same name, so that what a kill leaves is overwritten by the next write.
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def sole_writer(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Make ``folder`` and keep other trainings out of it; a kill sets it free.

    With ``wait``, until another one has ended; else CheckpointError while there is one, and always when
    the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be made: {error.strerror}") from None
    try:
        # Some network file systems have no locks, and are no reason not to train.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(held, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(f"{folder}: another training writes there now") from None
        yield
    finally:
        os.close(held)


def read(path: Path, agent: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Description and arrays of a checkpoint of ``agent``; CheckpointError names what is wrong."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        # np.load takes other files than archives, too.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise CheckpointError(f"{path}: holds more than {_MOST_BYTES >> 20} MiB, which no checkpoint here does")
            loaded = np.load(io.BytesIO(content), allow_pickle=False)
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        meta = json.loads(bytes(arrays.pop(_META)).decode())
    except CheckpointError:
        raise
    except _DAMAGED:
        raise CheckpointError(f"{path}: is not a checkpoint of TwinBed, or is damaged") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not a checkpoint of TwinBed")
    if meta.get("version") != VERSION:
        raise CheckpointError(f"{path}: has format version {meta.get('version')!r}, this program reads {VERSION}")
    if meta.get("agent") != agent:
        raise CheckpointError(f"{path}: is a checkpoint of {meta.get('agent')}, not of {agent}")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"{path}: array {name} has values that are no numbers")
    return meta, arrays
