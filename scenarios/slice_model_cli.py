"""``twin slice-model``: what a slice's users get, learned from measured data (MicroOpt, section IV-A)."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from scenarios.options import Format, FormatOption

app = typer.Typer(
    name="slice-model",
    help="Slice models: learn the distribution of the QoS from data, score it, look at it.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


class ModelKind(StrEnum):
    """What the distribution is."""

    GAUSSIAN = "gaussian"
    MDN = "mdn"
    PAPER = "paper"


class Qos(StrEnum):
    """What is predicted."""

    THROUGHPUT = "throughput_mbps"
    DELAY = "delay_s"


ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL.pt", help="a model file")]
DataOption = Annotated[Path, typer.Option(metavar="FILE", help="data set, CSV or .parquet: cpu, bw, n_users, qos")]


@app.callback()
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def fit(
    data: DataOption,
    out: Annotated[Path, typer.Option(metavar="FILE", help="model file to write")],
    kind: Annotated[
        ModelKind,
        typer.Option(help="one normal, a mixture of normals, or the paper's network without changes"),
    ] = ModelKind.GAUSSIAN,
    seed: Annotated[int, typer.Option(metavar="NUMBER", min=0, help="seed of everything random")] = 0,
    check: Annotated[
        bool, typer.Option("--validate/--no-validate", help="also fit twice without a fifth of the data and score that")
    ] = True,
    output: FormatOption = Format.TABLE,
) -> None:
    """Fit a slice model on every row, and say how one fitted without a fifth of the cells, or rows, does on them."""
    _needs_torch()
    from controllers.microopt import slice_fit, slice_model, slice_score
    from controllers.microopt.slice_data import SliceModelError, read_qos

    if not out.parent.is_dir():
        raise SliceModelError(f"--out {out}: no folder {out.parent}")
    rows = read_qos(data)
    begin_s = time.perf_counter()
    model = slice_fit.fit(rows, kind=kind.value, seed=seed)
    fit_s = time.perf_counter() - begin_s
    scores = slice_score.validate(rows, kind=kind.value, seed=seed) if check else {}
    model.provenance["validation"] = scores
    slice_model.save(model, out)
    known = model.provenance["data"]
    found = {
        "model": str(out),
        "kind": kind.value,
        "slices": list(model.slices),
        "qos": list(model.qos_names),
        "rows": known["rows"],
        "cells": known["cells"],
        "fit_s": fit_s,
        "validation": scores,
    }
    if output is Format.JSON:
        _print(found)
        return
    from scenarios.tables import print_rows

    flat = {key: value for key, value in found.items() if not isinstance(value, dict)}
    flat |= {"slices": ", ".join(model.slices), "qos": ", ".join(model.qos_names)}
    print_rows([flat], flat)
    _print_scores([{"withheld": split.replace("_", " "), **one} for split, one in scores.items()], ("withheld",))


@app.command()
def evaluate(model: ModelArgument, data: DataOption, output: FormatOption = Format.TABLE) -> None:
    """Score a model on a data set: likelihood, errors and calibration."""
    _needs_torch()
    from controllers.microopt import slice_score
    from controllers.microopt.slice_data import read_qos
    from controllers.microopt.slice_model import load

    found = slice_score.evaluate(load(model), read_qos(data, least_cells=1))
    if output is Format.JSON:
        _print(found)
    else:
        _print_scores(found["each"], ("slice", "qos"))


@app.command()
def show(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="page to write")],
    slice_name: Annotated[
        str | None, typer.Option("--slice", metavar="NAME", help="which, if there are several")
    ] = None,
    qos: Annotated[Qos, typer.Option(help="what is drawn")] = Qos.THROUGHPUT,
    output: FormatOption = Format.TABLE,
) -> None:
    """Draw the mean QoS over two resources as a surface that can be turned, for every number of users."""
    _needs_torch()
    from controllers.microopt.slice_model import load
    from controllers.microopt.slice_surface import write_surface

    write_surface(load(model), out, slice_name=slice_name, qos=qos.value)
    if output is Format.JSON:
        _print({"file": str(out)})
    else:
        print(out)


def _needs_torch() -> None:
    from importlib.util import find_spec

    from scenarios.registry import MissingPartError

    if find_spec("torch") is None:
        raise MissingPartError("slice-model: no package torch: needs pip install 'twinbed[learning]'")


def _print_scores(rows: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    from scenarios.tables import print_rows

    flat = []
    for row in rows:
        calibration = row["calibration"]
        flat.append(
            {name: row[name] for name in (*names, "rows", "nll", "mse", "mae")}
            | {f"in_{level}": share for level, share in calibration["coverage"].items()}
            | {"pit_distance": calibration["pit_distance"], "extrapolated": row["extrapolated"]}
        )
    if flat:
        print_rows(flat, flat[0], whole=names)


def _print(found: dict[str, Any]) -> None:
    from scenarios.runs import dumps

    print(dumps(found))
