"""A command of heteroring, run in this process."""

from typer.testing import CliRunner

from heteroring.cli.main import app


def heteroring(*words) -> str:
    """The output of the command, which must succeed."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output
