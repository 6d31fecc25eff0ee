"""The command mbq inside a test."""

from typer.testing import CliRunner

from mbq_lab.command.app import app

TINY = ["--epochs", "1", "--float-epochs", "1", "--batch-size", "128"]


def mbq(*arguments):
    """Run `mbq` with `arguments`; only its own exit may end it."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result
