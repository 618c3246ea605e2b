"""Fail if a LaTeX log reports a broken reference, a missing glyph, an overfull line or a float longer than a page.

    python workflow/scripts/check_latex_log.py latex/report.log

Prints one line for each problem and exits with 1 if there is any, with 2 if the log cannot be read, with 0 otherwise.
"""

import re
import sys
from pathlib import Path

# Points by which a box may stick out, which is not visible on paper.
TOLERATED_PT = 5.0

# TeX breaks the lines of its log here, also in the middle of words.
_LOG_WIDTH = 79

_PROBLEMS = (
    r"! .*",
    r"LaTeX Warning: (?:Reference|Citation) .* undefined.*",
    r"LaTeX Warning: Label .* multiply defined.*",
    r"LaTeX Warning: There were (?:undefined references|multiply-defined labels).*",
    r"LaTeX Warning: Label\(s\) may have changed.*",
    r"LaTeX Warning: File .* not found.*",
    r"LaTeX Warning: Float too large for page.*",
    r"Missing character: .*",
)
_OVERFULL = re.compile(r"Overfull \\[hv]box \((\d+(?:\.\d+)?)pt too (?:wide|high)\).*")


def unwrapped(log: str) -> str:
    """The log with the lines joined that TeX broke at its fixed width."""
    text = []
    for line in log.splitlines():
        text.append(line if len(line) == _LOG_WIDTH else line + "\n")
    return "".join(text)


def problems(log: str) -> list[str]:
    """The complaints in `log` that concern a reader of the PDF, in order, each once."""
    found = []
    for line in unwrapped(log).splitlines():
        overfull = _OVERFULL.match(line)
        if any(re.match(pattern, line) for pattern in _PROBLEMS) or (
            overfull and float(overfull.group(1)) > TOLERATED_PT
        ):
            found.append(line)
    return list(dict.fromkeys(found))


def main(path: str) -> int:
    """Print the complaints in the log at `path`; returns the exit status."""
    try:
        log = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        print(f"cannot read {path}: {error.strerror}", file=sys.stderr)
        return 2
    for problem in (found := problems(log)):
        print(f"{path}: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
