"""Choose the platform that the paper shows and the platform that this machine measures, and locate their files.

Runs while the workflow is parsed, so it asks the driver for GPUs instead of importing torch.
"""

import os
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from heteroring.words import choices

MEASURABLE = ("cpu", "gpu")
PREFERRED_RECORD = "h200x2"
GPUS = "HETERORING_GPUS"


@dataclass(frozen=True)
class Platforms:
    """main: shown by figures/NAME.png and the paper's results; live: measured on this machine."""

    main: str
    live: str
    measurable: tuple[str, ...]
    recorded: tuple[str, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """`main` and `live`, or one of them if they are the same."""
        return tuple(dict.fromkeys((self.main, self.live)))

    @property
    def known(self) -> tuple[str, ...]:
        """All platforms, measurable here or recorded."""
        return (*self.measurable, *self.recorded)


def choose(requested: str, gpus: int, recorded: Collection[str], ranks: int = 2) -> Platforms:
    """Resolve the config key `platform`.

    Args:
        requested: The value of the key.
        gpus: CUDA GPUs of this machine.
        recorded: Platforms with recorded measurements.
        ranks: World size of the rings.

    Returns:
        The platforms.

    Raises:
        ValueError: When `requested` is neither measurable here nor recorded.
    """
    measurable = MEASURABLE if gpus >= ranks else ("cpu",)
    recorded = tuple(sorted(set(recorded) - set(MEASURABLE)))
    if requested == "auto" and gpus >= ranks:
        main = "gpu"
    elif requested == "auto":
        main = PREFERRED_RECORD if PREFERRED_RECORD in recorded else "cpu"
    elif requested == "gpu" and gpus < ranks:
        raise ValueError(f"platform=gpu needs a CUDA GPU for each of {ranks} ranks, and this machine shows {gpus}")
    elif requested not in (*measurable, *recorded):
        known = choices(requested, ("auto", *MEASURABLE, *recorded))
        raise ValueError(f"platform={requested}: no measurements are recorded under data/{requested}; choose {known}")
    else:
        main = requested
    # If a live platform is requested by name, only that is measured.
    live = main if main in measurable else measurable[-1]
    return Platforms(main=main, live=live, measurable=measurable, recorded=recorded)


def recorded_platforms(data: Path) -> tuple[str, ...]:
    """Recorded platforms: folders under `data` with a provenance.json that were not measured here."""
    found = (path.parent.name for path in data.glob("*/provenance.json"))
    return tuple(sorted(name for name in found if name not in MEASURABLE))


def visible_gpus() -> int:
    """CUDA GPUs that a process started from here would see; 0 without a working driver.

    The environment variable GPUS gives the number where jobs run elsewhere, on nodes of a cluster. Raises ValueError if
    it is no number.
    """
    if (named := os.environ.get(GPUS)) is not None:
        if not named.isdecimal():
            raise ValueError(f"{GPUS}={named} is not a number of GPUs")
        return int(named)
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    present = sum(line.startswith("GPU ") for line in listing.splitlines())
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return present
    listed = [entry for entry in allowed.split(",") if entry.strip() not in ("", "-1")]
    return min(present, len(listed))
