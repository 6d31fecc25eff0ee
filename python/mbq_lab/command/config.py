"""Options from a file."""

import difflib
import json
from pathlib import Path


def read_config(path: Path, known: set[str]) -> dict:
    """Return {option: value} from a JSON, TOML or YAML file of one level; names may be spelt as on the command line.

    A list becomes its text with commas. Raises ValueError for a file that cannot be read, and for a name that
    is not `known`, with the nearest one.
    """
    values = {name.lstrip("-").replace("-", "_"): value for name, value in _parsed(path).items()}
    version = values.pop("version", None)  # a run's config.json
    if version is not None:
        _check_version(path, version)
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"no option is called {name} in {path}{hint}")
        if isinstance(value, dict) or value is None:
            raise ValueError(f"{name} must be one value or a list, got {value!r} in {path}")
    return {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}


def _parsed(path: Path) -> dict:
    parse = {".json": json.loads, ".toml": _toml, ".yaml": _yaml, ".yml": _yaml}.get(path.suffix.lower())
    if parse is None:
        raise ValueError(f"the file must end in .json, .toml, .yaml or .yml, got {path}")
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror.lower()}") from None
    except ImportError as error:
        needed = {"tomllib": "Python 3.11", "yaml": "the package pyyaml"}[error.name]
        raise ValueError(f"{path.suffix} files need {needed}; JSON needs nothing") from None
    except Exception as error:  # each parser has its own
        raise ValueError(f"{path} must be {path.suffix[1:].upper()} ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold names and values, got {type(values).__name__}")
    return values


def _toml(text: str):
    import tomllib  # since Python 3.11

    return tomllib.loads(text)


def _yaml(text: str):
    import yaml

    return yaml.safe_load(text)


def _check_version(path: Path, version) -> None:
    from mbq_train.checkpoint import READABLE

    if version not in READABLE:
        raise ValueError(f"version must be {' or '.join(map(str, READABLE))}, got {version!r} in {path}")
