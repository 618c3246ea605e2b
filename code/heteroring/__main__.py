"""The entry point of the command line, as `heteroring` and as `python -m heteroring`."""

import gc

from heteroring.interrupts import quit_on_ctrl_c


def main() -> None:
    """Run the command line. Ctrl-C is handled before its modules are imported."""
    quit_on_ctrl_c()
    gc.set_threshold(100_000)  # imported objects stay: the garbage collector need not scan them repeatedly
    from heteroring.cli.main import main

    try:
        main()
    finally:
        gc.freeze()  # else the last garbage collection before exit scans all of torch


if __name__ == "__main__":
    main()
