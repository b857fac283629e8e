from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from agents import checkpoint
from agents.checkpoint import CheckpointError


def test_what_is_written_is_read_and_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    arrays = {"policy/w": np.arange(6.0).reshape(2, 3), "random": np.array([1, 2], dtype=np.uint32)}
    for name in ("one.npz", "two.npz"):
        checkpoint.write(tmp_path / name, "phaul", {"gamma": 0.5, "flows": ["a"]}, arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "two.npz"]
    meta, found = checkpoint.read(tmp_path / "one.npz", "phaul")
    assert (meta["gamma"], meta["flows"], meta["version"]) == (0.5, ["a"], checkpoint.VERSION)
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in arrays.items()
    }


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.npz"
    checkpoint.write(path, "phaul", {}, {})
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"one\.npz: cannot be written: No space left on device"):
        checkpoint.write(path, "phaul", {"gamma": 1}, {})
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["one.npz"]


class Ran:
    """Tells when it is unpickled."""

    ran = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return setattr, (Ran, "ran", True)


def damaged(path: Path, kind: str) -> None:
    """A file that is no usable checkpoint."""
    checkpoint.write(path, "phaul", {}, {"a": np.zeros(2000)})
    whole = path.read_bytes()
    meta = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "agent": "phaul"}
    if kind == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "flipped":
        path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 255]) + whole[1001:])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("{}")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Ran()))
    elif kind == "pickled array":
        np.savez(path, meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8), a=np.array([Ran()], dtype=object))
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "no meta":
        np.savez(path, a=np.zeros(3))
    elif kind == "version":
        text = json.dumps({**meta, "version": 7}).encode()
        np.savez(path, meta=np.frombuffer(text, dtype=np.uint8))
    elif kind == "other agent":
        checkpoint.write(path, "microopt", {}, {})
    elif kind == "nan":
        checkpoint.write(path, "phaul", {}, {"a": np.array([1.0, np.nan])})
    elif kind == "huge array":
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50,)})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("huge.npy", header.getvalue())
    elif kind == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("meta.npy", "w") as file:
            for _ in range(11):
                file.write(bytes(100 << 20))
    elif kind == "deep":
        np.savez(path, meta=np.frombuffer(b"[" * 100_000, dtype=np.uint8))
    elif kind == "missing":
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("half", "is not a checkpoint of TwinBed, or is damaged"),
        ("flipped", "is not a checkpoint of TwinBed, or is damaged"),
        ("empty", "is not a checkpoint of TwinBed, or is damaged"),
        ("text", "is not a checkpoint of TwinBed, or is damaged"),
        ("pickle", "is not a checkpoint of TwinBed, or is damaged"),
        ("pickled array", "is not a checkpoint of TwinBed, or is damaged"),
        ("array", "is not a checkpoint of TwinBed"),
        ("no meta", "is not a checkpoint of TwinBed"),
        ("version", "has format version 7, this program reads 1"),
        ("other agent", "is a checkpoint of microopt, not of phaul"),
        ("huge array", "is not a checkpoint of TwinBed, or is damaged"),
        ("bomb", "holds more than 1024 MiB, which no checkpoint here does"),
        ("deep", "is not a checkpoint of TwinBed, or is damaged"),
        ("nan", "array a has values that are no numbers"),
        ("missing", "cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_used_is_one_line(kind: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    damaged(path, kind)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path, "phaul")
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Ran.ran
