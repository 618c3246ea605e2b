"""A whole model over two GPUs: measured, compared with one GPU, its memory counted and a layer of it traced."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu import two_gpus

pytest.importorskip("fms")

from heteroring.results.model_metrics import layer_shares, trace_table
from heteroring.results.model_rows import ModelRow, TraceRow
from heteroring.results.provenance import read_json
from heteroring.results.rows import read_rows
from tree import ROOT

pytestmark = two_gpus

SIZES = {"layers": 4, "emb-dim": 512, "heads": 4, "kv-heads": 2, "vocabulary": 512}
WEIGHTS = 2 * (2 * 512 * 512 + 4 * (2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 1536))  # bytes, norms left out


def command(folder: Path, throttle: str, percentages: str) -> list[str]:
    sizes = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    return [
        *(sys.executable, "-m", "heteroring", "model", "--platform", "gpu", "--throttle", throttle),
        *("--percentages", percentages, "--model", "llama/micro", *sizes, "--dtype", "bfloat16"),
        *("--seq-lens", "1000,4096", "--strategies", "contiguous/even,zigzag/even,zigzag/uneven"),
        *("--new-tokens", "8", "--repetitions", "2", "--output", str(folder / "pct-100.csv")),
    ]


@pytest.mark.parametrize(("throttle", "percentages"), [("none", "100,100"), ("mps", "100,50")])
def test_two_gpus_prefill_and_decode_what_one_does(tmp_path, throttle, percentages):
    path = os.pathsep.join([str(ROOT / "code"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command(tmp_path, throttle, percentages),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "pct-100.csv", ModelRow)
    assert len(rows) == 2 * (2 * (3 + 2) + 3)  # repetitions x (lengths x (strategies, ranks alone), decodes)
    for row in rows:
        assert row.captured == (row.phase == "decode")
        assert (row.limit_ms > 0) == row.captured
    for row in rows:
        held = [peak for peak in row.peak_memory_bytes if peak]
        assert len(held) == (1 if row.system == "alone" else 2)
        assert min(held) > WEIGHTS
    notes = read_json(tmp_path / "pct-100.json")["notes"]
    assert any("of their size at most" in note for note in notes)
    shares = layer_shares(trace_table(read_rows(tmp_path / "trace-100.csv", TraceRow)))
    assert set(shares["rank"]) == {0, 1}
    assert (shares["busy_ms"] > 0).all()
