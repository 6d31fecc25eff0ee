"""The group of commands: what ends in one line on stderr, and how."""

import os
import re
import sys

import typer
from typer.core import TyperCommand, TyperGroup

_UsageError = typer.BadParameter.__base__  # of click, of which newer versions of typer hold a copy
_FUNCTION = re.compile(r"^[A-Za-z_]\w*: ")
_ARGUMENTS = re.compile(r"[-\w]+(?:(?:, | and | or )[-\w]+)*")  # what must be something, in the words of the library
_MEANT = {("load_data", "name"): "data", ("build_model", "name"): "model", ("ablate", "bits"): "measure",
          ("train_run", "folder"): "out", ("score_run", "folder"): "out"}
_TEMPORARY = re.compile(r"\.([^/]+)\.[0-9a-f]+\.tmp$")  # what a file is written as before it gets its name


class _ShortHelp:
    """Help that fits into 80 columns: no types, and no `--no-...` beside switches that are off."""

    def format_help(self, ctx, formatter):
        for parameter in self.params:
            if parameter.param_type_name == "option":
                parameter.metavar = parameter.metavar or ""
                if parameter.is_flag and not parameter.default:
                    parameter.secondary_opts = []
        super().format_help(ctx, formatter)


class Command(_ShortHelp, TyperCommand):
    """A command with short help."""


class Commands(_ShortHelp, TyperGroup):
    """A group whose commands end in one line on stderr for whatever a user can cause: exit code 2, after Ctrl-C 130.

    A command whose callback has an attribute `complete` is replaced, once it is called, by what `complete()` returns:
    its options take seconds to import, and the list of commands needs none of them.
    """

    def resolve_command(self, ctx, args):
        name, command, rest = super().resolve_command(ctx, args)
        complete = getattr(command.callback, "complete", None)
        if complete is not None:
            command = self.commands[name] = complete()
        return name, command, rest

    def main(self, args=None, prog_name=None, *, standalone_mode: bool = True, **extra):
        """Run a command; without one, print the help."""
        args = (sys.argv[1:] if args is None else list(args)) or ["--help"]
        try:
            code = super().main(args, prog_name, standalone_mode=False, **extra)
            sys.stdout.flush()
        except _UsageError as error:
            code = fail(error.format_message())
        except BrokenPipeError:  # the reader, as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx):
        """Run the command of the context, and turn its errors into one line."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, _UsageError, ModuleNotFoundError, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(fail("stopped by Ctrl-C", code=130)) from None
        except Exception as error:
            if not _is_expected(error):
                raise
            command = self.get_command(ctx, ctx.invoked_subcommand)
            typed = [option.opts[0] for option in command.params if option.opts[0].startswith("--")]
            options = {option[2:].replace("-", "_"): option for option in typed}
            raise typer.Exit(fail(said(error, options))) from None


def _is_expected(error: Exception) -> bool:
    """Return whether `error` is of those that a user can cause."""
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        return True
    import torch

    from mbq_kernels import BackendError
    from mbq_train.training.divergence import TrainingError

    return isinstance(error, (TrainingError, BackendError, torch.OutOfMemoryError))


def said(error: Exception, options: dict[str, str]) -> str:
    """Return the message of an error in the words of somebody who typed a command.

    The function that raised it goes, and an argument that is one of `options`, {name: as typed}, is named as typed:
    `options: learning_rate must be ..., got 0.0` becomes `--learning-rate must be ..., got 0.0`.
    """
    store = sys.modules.get("mbq_store")  # where it is not imported, no error is of it
    if isinstance(error, OSError) and error.strerror:
        where = _TEMPORARY.sub(r"\1", str(error.filename or ""))
        return f"{where}: {error.strerror.lower()}" if where else error.strerror.lower()
    if store is not None and isinstance(error, store.StoreError):
        layer = f"layer {error.layer!r}: " if error.layer else ""
        return f"{error.path} is not a store that can be read: {layer}{error.reason}"
    text = " ".join(str(error).split())
    function = _FUNCTION.match(text)
    text = without_function(text)
    subject, must, rest = text.partition(" must ")
    owner = function[0][:-2] if function else ""

    def as_typed(word):
        return options.get(_MEANT.get((owner, word[0]), word[0]), word[0])

    if must and _ARGUMENTS.fullmatch(subject):
        subject = re.sub(r"(?<![-\w])\w+", as_typed, subject)
    with_underscore = re.compile(r"(?<![-/.\w])[a-z]+(?:_[a-z]+)+(?![-/.\w])")
    return subject + must + with_underscore.sub(lambda word: options.get(word[0], word[0]), rest)


def without_function(message: str) -> str:
    """Return a message of the library without the function that it begins with."""
    return _FUNCTION.sub("", message)


def fail(message: str, code: int = 2) -> int:
    """Print one line, in the first process alone, and return the exit code."""
    if int(os.environ.get("RANK", 0)) == 0:
        typer.echo(message if code != 2 else f"error: {message}", err=True)
    return code
