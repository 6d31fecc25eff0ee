"""The command `mbq`: train, resume, eval, sensitivity, search, score, transfer, ablate, export, switch, inspect, info,
bench.

What a command needs is imported when it runs: torch takes seconds, and help, versions and completion need none of it.
"""

import os
import sys
import warnings
from importlib.metadata import version
from platform import python_version
from typing import Annotated

import typer

from .arguments import with_options
from .bench import bench
from .files import export, info, inspect, switch
from .group import Command, Commands, without_function
from .measure import evaluate, score, sensitivity, transfer
from .search import search
from .train import ablate, resume, train

app = typer.Typer(cls=Commands, pretty_exceptions_enable=False, help="Train one network that computes at several "
                  "bit-widths.", context_settings={"help_option_names": ["-h", "--help"]})


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mbq {version('mbq-kernels')}, torch {version('torch')}, Python {python_version()}")
        raise typer.Exit


@app.callback()
def _mbq(version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version,
                                               help="print the version and exit")] = False) -> None:
    pass


def _late(command):
    """Return a command without options that becomes `command` with those of a run when it is called."""
    def complete():
        alone = typer.Typer(add_completion=False)
        alone.command(command.__name__, cls=Command)(with_options(command))
        return typer.main.get_command(alone)

    def listed() -> None:
        pass

    listed.__doc__, listed.complete = command.__doc__, complete
    return listed


for command in (train, resume, evaluate, sensitivity, search, score, transfer, ablate, export, switch, inspect, info,
                bench):
    name = "eval" if command is evaluate else command.__name__
    app.command(name, cls=Command)(_late(command) if command in (train, ablate) else command)


def main() -> None:
    """Run the command, which finds modules beside it: `--model my_networks:factory`."""
    sys.path.insert(0, os.getcwd())
    warnings.formatwarning = lambda message, *place: f"warning: {without_function(str(message))}\n"
    app()
