"""Report the violations found by a check of measurements, and end its run."""

import sys
from collections.abc import Sequence
from pathlib import Path


def end_if_any(found: Sequence[str], tables: Sequence[Path], jobs: str) -> None:
    """Exit with status 1, naming all violations `found` in `tables`, unless there are none.

    jobs: the folder, inside the platform's, in which the measurements that `tables` were derived from lie.
    """
    if not found:
        return
    remedy = (
        f"If the machine was busy while it measured: delete the CSVs of these jobs in {jobs}/ of the "
        "platform's folder, and give the same command again."
    )
    sys.exit("\n".join([f"{len(found)} violations in {' and '.join(map(str, tables))}:", *found, remedy]))
