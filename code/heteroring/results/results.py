"""The results of a platform, for figures, paper and notebooks."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from heteroring.files import read_json, read_text
from heteroring.results.metrics import measurement_table
from heteroring.results.model_rows import ChunkRow
from heteroring.results.provenance import read_record
from heteroring.results.rows import Measurement, read_rows
from heteroring.results.tables import read_table
from heteroring.results.throttle_words import throttle_words

# Rows that `heteroring demo --rebalance --output` writes, in a platform's folder; the latter with --throttle neighbour.
CHUNKS = "rebalancing.csv"
BESIDE_NEIGHBOUR = "rebalancing_neighbour.csv"
NOTES = "notes.txt"
# Files that `Results.load` reads if they exist, beside tables and models.
OPTIONAL = (CHUNKS, BESIDE_NEIGHBOUR, NOTES)


@dataclass(frozen=True)
class Results:
    """The tables that `heteroring aggregate` derived, the fitted models by name, and the record of the jobs.

    `measurements` has one row per repetition, `cells` one per cell of the grid, `profile` one per operator, size
    and percentage; columns with one value per rank hold tuples. `fitted_models` are of speed and cost,
    those of a whole model's blocks among them.
    `model` has one row for each cell in which a whole language model was measured, `trace` one for each event of its
    traced layer, `chunks` one for each chunk of prefills during which a rank's speed changed (rebalancing.csv),
    `beside_neighbour` the same where another process took part of the GPU (rebalancing_neighbour.csv); all
    are empty where there was none. `notes` is what else a reader must know about the recording: notes.txt of the
    folder, in one line.
    """

    platform: str
    cells: pd.DataFrame
    profile: pd.DataFrame
    measurements: pd.DataFrame
    fitted_models: dict[str, dict[str, Any]]
    provenance: dict[str, Any]
    model: pd.DataFrame = field(default_factory=pd.DataFrame)
    trace: pd.DataFrame = field(default_factory=pd.DataFrame)
    chunks: pd.DataFrame = field(default_factory=pd.DataFrame)
    beside_neighbour: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: str = ""

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Results:
        """The results in a platform's folder.

        Args:
            folder: The folder, with the tables that `heteroring aggregate` derives.

        Returns:
            The results.

        Raises:
            ValueError: Naming the file, if one is missing or cannot be parsed.
        """
        folder = Path(folder)
        measurements = measurement_table(read_rows(folder / "derived" / "measurements.csv", Measurement))
        provenance = read_record(folder / "provenance.json")
        fitted = [path for part in ("models", "model/models") for path in sorted((folder / part).glob("*.json"))]
        notes = folder / NOTES
        return cls(
            platform=provenance["platform"],
            cells=read_derived(folder / "derived" / "cells.csv"),
            profile=read_derived(folder / "derived" / "profile.csv"),
            measurements=measurements,
            fitted_models={path.stem: read_json(path) for path in fitted},
            provenance=provenance,
            model=_read_optional(folder / "derived" / "model.csv"),
            trace=_read_optional(folder / "derived" / "trace.csv"),
            chunks=_read_chunks(folder / CHUNKS),
            beside_neighbour=_read_chunks(folder / BESIDE_NEIGHBOUR),
            notes=" ".join(read_text(notes).split()) if notes.is_file() else "",
        )

    @property
    def device_label(self) -> str:
        """The ranks' devices, in words: "2 x NVIDIA H200, MPS" or "2 paced CPU ranks (AMD EPYC)"."""
        return self.devices_under(self.provenance["throttle"])

    def devices_under(self, throttle: str) -> str:
        """The ranks' devices, in words, under a throttle.

        Args:
            throttle: Name of the throttle.

        Returns:
            A phrase such as "2 x NVIDIA H200, MPS".
        """
        devices, slowed = self.provenance["devices"], throttle_words(throttle).device
        models = " + ".join(dict.fromkeys(devices))
        if not self.provenance["multiprocessors"]:
            return f"{len(devices)} {f'{slowed} CPU ranks'.strip()} ({models})"
        return f"{len(devices)} x {models}" + (f", {slowed}" if slowed else "")


def headline(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells that most figures and the paper show: rested calls, the slow rank last, as the public study has it.

    Speed models are fitted to matrix products, as there, and no strategy has variants (`Strategy`).

    Args:
        cells: The table `Results.cells`.

    Returns:
        Some of its rows.
    """
    other = cells["strategy"].str.contains("[@:]")
    return slow_last(cells[(cells["condition"] == "rested") & ~other])


def slow_last(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose ranks are equal, or equal except for a slow last one.

    Args:
        table: A table with a column `order`.

    Returns:
        Some of its rows.
    """
    return table if table.empty else table[table["order"].isin(["equal", "slow last"])]


_TUPLES = {"percentages": int, "block_lens": int, "busy_ms": float, "peak_memory_gb": float}


def _read_chunks(path: Path) -> pd.DataFrame:
    return pd.DataFrame(map(vars, read_rows(path, ChunkRow) if path.is_file() else []))


def _read_optional(path: Path) -> pd.DataFrame:
    """The table, or one without rows if that was not measured."""
    return read_derived(path) if path.is_file() else pd.DataFrame()


def read_derived(path: Path) -> pd.DataFrame:
    """A derived table, with tuples in columns of one value per rank. Raises ValueError, naming the file, if invalid."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: `heteroring aggregate --platform-dir {path.parent.parent}` makes it")
    table = read_table(path)
    for column, parse in _TUPLES.items():
        if column in table:
            try:
                table[column] = [tuple(map(parse, text.split())) for text in table[column]]
            except ValueError as error:
                raise ValueError(f"{path}, column {column}: {error}") from error
    return table
