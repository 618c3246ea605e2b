"""The command line: `heteroring COMMAND`, each command a function with its options.

Torch, pandas and the like are imported by the command that needs them, so that help and mistakes cost no wait.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from heteroring import __version__
from heteroring.cli import bench, demo, doctor, figure, model, plan, profile, simulate
from heteroring.cli.options import (
    LISTED,
    MEASURE,
    RANKS,
    SHOW,
    SPLIT,
    WHAT,
    WRITE,
    Json,
    Percentages,
    PrefixLens,
    check_output,
    examples,
    integer,
    integers,
    option,
    print_json,
    printing,
    reporting,
    say_error,
)
from heteroring.interrupts import quit_on_ctrl_c, raise_on_ctrl_c
from heteroring.words import in_one_line, listed

# The base class of errors on wrong use of options, which is click's; typer itself does not export it.
_UsageError = typer.BadParameter.__base__
_EXIT_CODES = "Exit codes: 0 done; 1 a run failed; 2 wrong usage or input; 128 + n ended by signal n."


class _Commands(TyperGroup):
    """Reports wrong use of options in one line."""

    def main(self, *args: Any, **settings: Any) -> Any:
        try:
            status = super().main(*args, **settings | {"standalone_mode": False})
        except _UsageError as error:
            message = error.format_message()  # empty where help has been printed instead
            if type(error) is typer.BadParameter and error.param is not None:
                message = f"{error.param.opts[0]} {error.message}"
            if message:
                say_error(in_one_line(" ".join(message.split())))
            status = error.exit_code
        sys.exit(status if isinstance(status, int) else 0)


app = typer.Typer(
    name="heteroring",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"heteroring {__version__}")
        raise typer.Exit


@app.callback(epilog=f"heteroring COMMAND --help shows options and an example.\n\n{_EXIT_CODES}")
def heteroring(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Ring attention over unequal ranks: measure it, fit its speed, share out its tokens."""


@reporting
def fit(
    profiles: Annotated[
        list[Path], typer.Argument(help="CSVs that `heteroring profile` wrote.", metavar="PROFILE_CSV...")
    ],
    output: Annotated[Path, option(WRITE, "JSON of the model to write.")],
    kind: Annotated[str, option(WHAT, "lut, formula or cost.")] = "lut",
    source: Annotated[
        str,
        option(
            WHAT,
            "Operator to fit to: matmul or attention; for cost attention, layer or block.",
            show_default="matmul; attention for cost",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Fit a model of speed or of cost, by length and percentage, to profiles; with --json, print it as well."""
    check_output(output, ".json")
    from heteroring.allocators import fit
    from heteroring.results.strategy import DEFAULT_SOURCE

    raise_on_ctrl_c()
    fitted = fit(kind, source or (None if kind == "cost" else DEFAULT_SOURCE), profiles)
    fitted.save(output)
    if as_json:
        print_json(fitted.to_json())


@reporting
def allocate(
    allocator: Annotated[str, typer.Argument(help="even, uneven, lut, formula or balanced.")],
    seq_len: Annotated[int, integer(WHAT, "Tokens to share out.")],
    percentages: Percentages,
    model: Annotated[Path | None, option(RANKS, "Fitted model, or profile CSV, for lut, formula, balanced.")] = None,
    layout: Annotated[str, option(WHAT, "contiguous or zigzag; balanced plans for it.")] = "zigzag",
    prefix_lens: PrefixLens = "",
    as_json: Json = False,
) -> None:
    """Print how many tokens each rank gets; what is odd about the answer goes to stderr, or into the JSON."""
    by_rank = integers("--percentages", percentages)
    earlier = integers("--prefix-lens", prefix_lens) if prefix_lens else ()
    from heteroring.allocators import allocation

    answer = allocation(allocator, seq_len, percentages=by_rank, profile=model, layout=layout, prefix_lens=earlier)
    if as_json:
        shares = {"block_lens": answer.block_lens, "clamped": answer.clamped, "notes": answer.notes}
        asked = {"allocator": allocator, "layout": layout, "seq_len": seq_len, "percentages": by_rank}
        asked |= {"prefix_lens": earlier} if earlier else {}
        print_json(asked | shares)
        return
    for note in answer.notes:
        print(f"heteroring: note: {note}", file=sys.stderr)
    with printing():
        print(*answer.block_lens)


@reporting
def aggregate(
    platform_dir: Annotated[Path, option(WHAT, "Folder of a platform: holds bench/ and profile/.")],
    percentages: Annotated[
        str, option(WHAT, f"Throttle settings of the profiles, {LISTED}.", show_default="all there")
    ] = "",
    bench: Annotated[
        str,
        option(
            WHAT,
            f"Jobs of the ring, {LISTED}: the names of their files in bench/, without suffix.",
            show_default="all there",
        ),
    ] = "",
    model: Annotated[
        str, option(WHAT, f"Jobs of whole models, {LISTED}, in the same way, or: none.", show_default="all there")
    ] = "",
    as_json: Json = False,
) -> None:
    """Derive a platform's tables from the rows of its jobs, and print which files were written."""
    chosen = integers("--percentages", percentages) if percentages else None
    of_ring = listed("--bench", bench) if bench else None
    of_models = None
    if model:
        of_models = () if model == "none" else listed("--model", model)
    from heteroring.results.aggregate import aggregate

    raise_on_ctrl_c()
    tables = [str(path) for path in aggregate(platform_dir, chosen, of_ring, of_models)]
    if as_json:
        print_json(tables)
        return
    with printing():
        print(*tables, sep="\n")


for panel, command, example in (
    (MEASURE, profile.profile, profile.EXAMPLES),
    (MEASURE, bench.bench, bench.EXAMPLES),
    (MEASURE, model.model, model.EXAMPLES),
    (SPLIT, fit, examples("heteroring fit --kind cost --output models/cost-attention.json profile/pct-*.csv")),
    (SPLIT, allocate, examples("heteroring allocate uneven --seq-len 65536 --percentages 100,10 --json")),
    (SPLIT, plan.plan, plan.EXAMPLES),
    (SPLIT, simulate.simulate, simulate.EXAMPLES),
    (SHOW, demo.demo, demo.EXAMPLES),
    (SHOW, doctor.doctor, doctor.EXAMPLES),
    (SHOW, aggregate, examples("heteroring aggregate --platform-dir data/h200x2")),
    (SHOW, figure.figure, figure.EXAMPLES),
):
    app.command(rich_help_panel=panel, epilog=example)(command)


def main() -> None:
    """Run the command line and flush stdout."""
    quit_on_ctrl_c()
    try:
        try:
            app()
        finally:
            quit_on_ctrl_c()
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        # The buffer still holds what could not be written; Python would try again, and complain, at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno != errno.EPIPE:  # the reader, such as `| head`, has closed the pipe
            say_error(f"cannot write to stdout: {error.strerror}")
        sys.exit(1)
