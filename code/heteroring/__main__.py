"""The entry point of the command line, as `heteroring` and as `python -m heteroring`."""

import gc

from heteroring.interrupts import quit_on_ctrl_c


def main() -> None:
    """Run the command line. Ctrl-C is heeded before anything is imported for it."""
    quit_on_ctrl_c()
    gc.set_threshold(100_000)  # what is imported stays: Python need not look through it again and again
    from heteroring.cli.main import main

    try:
        main()
    finally:
        gc.freeze()  # else Python, before it ends, looks through all of torch for what could be freed


if __name__ == "__main__":
    main()
