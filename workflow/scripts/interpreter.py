"""Can Snakemake start its scripts here? Asked before any job starts."""

import re


def check_interpreter(path: str) -> None:
    """Raise ValueError, naming `path`, if a shell would not take it as it is: Snakemake does not quote it."""
    if re.search(r"""[\s'"\\$&;()<>|`*?\[\]{}]""", path):
        raise ValueError(
            f"Snakemake cannot start the Python {path!r}: move the checkout, or its environment, to a path without "
            "spaces, quotes and other signs that a shell reads"
        )
