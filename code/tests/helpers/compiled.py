"""Run programs that compile Triton kernels in new processes: a process that interprets kernels compiles none."""

import os
import subprocess
import sys


def run(program, *words, **environment):
    """The output of the Python `program`. TRITON_CACHE_DIR, where it compiles, should be a new folder."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    inherited["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], env=inherited | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
