"""What the commands of `mbq` share: options from the command line, and errors that end in one line."""

import contextlib
import inspect
from dataclasses import fields
from typing import Annotated

import typer
from mbq_train import distributed
from mbq_train.training.divergence import TrainingError

from mbq_kernels import BackendError

from ..options import Options
from ..training.interrupt import Interrupted


def with_options(command):
    """`command` with one command line option for each of Options, which it gets as one Options object."""
    def run(context: typer.Context, **arguments):
        with clean_errors():
            values = {option.name: _parsed(option, arguments.pop(option.name)) for option in fields(Options)}
            given = {name: value for name, value in values.items() if name != "recipe"
                     and context.get_parameter_source(name).name != "DEFAULT"}
            command(Options.for_recipe(values["recipe"], **given), **arguments)

    own = [parameter for name, parameter in inspect.signature(command).parameters.items() if name != "options"]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context, *(_parameter(option) for option in fields(Options)), *own]
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def bits_of(text: str) -> tuple[int, ...] | None:
    """Bit-widths from their text, from high to low; None for none."""
    parts = [part for part in text.split(",") if part]
    return _integers("bits", parts) if parts else None


@contextlib.contextmanager
def clean_errors():
    """What a user can cause ends in one line on stderr: exit code 2, after Ctrl-C 130, after SIGTERM 143."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, TrainingError, BackendError) as error:
        if distributed.is_first():
            typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except Interrupted as error:
        typer.echo(f"stopped by {error}; mbq resume goes on from the checkpoint", err=True)
        raise typer.Exit(128 + error.signal) from None
    except KeyboardInterrupt:
        typer.echo("stopped by Ctrl-C", err=True)
        raise typer.Exit(130) from None


def _parameter(option) -> inspect.Parameter:
    default, words = option.default, [option.metadata["help"], ", ".join(option.metadata.get("choices", ()))]
    help_ = ": ".join(word for word in words if word)
    kind = str if isinstance(default, tuple) else type(default)
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=shown,
                             annotation=Annotated[kind, typer.Option(help=help_)])


def _parsed(option, value):
    """A tuple from its text; anything else is what typer made of it."""
    if not isinstance(option.default, tuple):
        return value
    parts = tuple(part for part in value.split(",") if part)
    return parts if option.name == "keep_float" else _integers(option.name, parts)


def _integers(name: str, parts) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        raise ValueError(f"mbq: {name} must be integers separated by commas, got {','.join(parts)!r}") from None
