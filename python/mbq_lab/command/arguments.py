"""What the commands of `mbq` share: options of a run from the command line and from a file, folders, bit-widths."""

import contextlib
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from .config import read_config
from .group import fail

RUN = "run"  # the panel of options that are not of Options
Threads = Annotated[int, typer.Option(min=1, rich_help_panel=RUN,
                                      help="CPU threads; small networks gain nothing from more")]
Device = Annotated[str, typer.Option(rich_help_panel=RUN,
                                     help="cpu, cuda, cuda:N, or auto: cuda where there is one")]
SaveEvery = Annotated[float, typer.Option(min=0, rich_help_panel=RUN,
                                          help="seconds between two checkpoints within an epoch")]
Overwrite = Annotated[bool, typer.Option("--overwrite", rich_help_panel=RUN, help="replace a run that is there")]
AsJson = Annotated[bool, typer.Option("--json", rich_help_panel=RUN, help="print one JSON object and nothing else")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=RUN, help="show no progress")]
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")]
Trained = Annotated[str, typer.Option(help="trained bit-widths, from high to low; empty: all")]


def with_options(command):
    """Return `command` with one command line option for each of Options, which it gets as one Options object."""
    from ..options import GROUPS, SPEC_OPTIONS, Options

    def run(context: typer.Context, config: Path | None, **arguments):
        values = {option.name: _parsed(option, arguments.pop(option.name)) for option in fields(Options)}
        given = {name: value for name, value in values.items() if name != "recipe"
                 and context.get_parameter_source(name).name != "DEFAULT"}
        command(Options.for_recipe(values["recipe"], **given), **arguments)

    own = [parameter for name, parameter in inspect.signature(command).parameters.items() if name != "options"]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    order = sorted(fields(Options), key=lambda option: (GROUPS.index(option.metadata["group"]),
                                                        option.name in SPEC_OPTIONS))
    parameters = [context, *map(_parameter, order), _CONFIG, *own]
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def bits_of(text: str, *, option: str = "bits") -> tuple[int, ...] | None:
    """Return bit-widths from the text of an option, from high to low; None where it is empty."""
    parts = [part for part in text.split(",") if part]
    return _integers(option, parts) if parts else None


@contextlib.contextmanager
def resumable(folder: Path):
    """Say how to go on after a stop that left a checkpoint; exit with code 130 after Ctrl-C, 143 after SIGTERM."""
    from ..training.interrupt import Interrupted

    try:
        yield
    except Interrupted as error:
        code = fail(f"stopped by {error}; mbq resume {folder} goes on from the checkpoint", 128 + error.signal)
        raise typer.Exit(code) from None


def _take_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values in a file the defaults of the command, which what is on the command line overrides."""
    if path is not None:
        context.default_map = read_config(path, {parameter.name for parameter in context.command.params} - {"config"})
    return path


_CONFIG = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[
    Path | None, typer.Option(metavar="FILE", rich_help_panel=RUN, is_eager=True, callback=_take_config,
                              help="take options from a JSON, TOML or YAML file, as config.json of a run; those on the "
                              "command line win")])


def _parameter(option) -> inspect.Parameter:
    default, group = option.default, option.metadata["group"]
    words = [option.metadata["help"].removeprefix(f"{group}: "), ", ".join(option.metadata.get("choices", ()))]
    kind = str if isinstance(default, tuple) else type(default)
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=Annotated[
        kind, typer.Option(help=": ".join(filter(None, words)), rich_help_panel=group)])


def _parsed(option, value):
    """Return a tuple from its text; anything else is what typer made of it."""
    if not isinstance(option.default, tuple):
        return value
    parts = tuple(part for part in value.split(",") if part)
    return parts if option.name == "keep_float" else _integers(option.name, parts)


def _integers(name: str, parts) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        raise ValueError(f"mbq: {name} must be integers separated by commas, got {','.join(parts)!r}") from None
