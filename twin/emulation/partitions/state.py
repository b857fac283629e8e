"""``state.json``: what the next daemon must know of the partitions, replaced as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from twin.emulation.partitions.partition import TRANSIENT, EdgeServer, Partition

NAME = "state.json"
_VERSION = 1
_BLOCK, _SPARE_BYTES, _SPARE_BYTES_EACH = 4096, 2048, 1024  # room for notes of what ends


def read(folder: Path) -> tuple[int, list[Partition]]:
    """The next partition's number, and the partitions. Raises OSError, ValueError, KeyError or TypeError."""
    state = json.loads((folder / NAME).read_text(encoding="utf-8"))
    if state["version"] != _VERSION:
        raise ValueError(f"version {state['version']}")
    return int(state["next_id"]), [Partition(**one) for one in state["partitions"]]


def write(folder: Path, server: EdgeServer, next_id: int, partitions: Collection[Partition]) -> None:
    """Replace the file at once, without new blocks on disk unless it grows a lot. Raises OSError.

    On a full disk what is given back must still be written down. So the old file becomes the next draft, and both
    have room to spare. Not flushed to disk: it has to outlive the daemon, and nothing it describes outlives the
    host.
    """
    rows = [{key: value for key, value in vars(one).items() if key not in TRANSIENT} for one in partitions]
    about = {**asdict(server), "subnet": str(server.subnet), "image": None}
    data = json.dumps({"version": _VERSION, "server": about, "next_id": next_id, "partitions": rows}, indent=1).encode()
    state, draft, old = (folder / name for name in (NAME, ".state.json", ".old.json"))
    room = -(-(len(data) + _SPARE_BYTES + _SPARE_BYTES_EACH * len(rows)) // _BLOCK) * _BLOCK
    with open(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as file:  # noqa: PTH123
        file.write(data.ljust(max(room, os.fstat(file.fileno()).st_size)))
    old.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        os.link(state, old)
    draft.rename(state)
    with suppress(FileNotFoundError):
        old.rename(draft)
