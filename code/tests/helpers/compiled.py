"""Programs that Triton compiles for, in processes of their own: in one that interprets kernels, it compiles none."""

import os
import subprocess
import sys


def run(program, *words, **environment):
    """What the Python `program` prints. TRITON_CACHE_DIR, where it compiles, should be a new folder."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    inherited["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], env=inherited | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
