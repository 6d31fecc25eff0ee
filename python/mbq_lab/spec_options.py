"""How an option is described, and the options of all quantizers, made from their specs."""

from dataclasses import Field, field, fields, make_dataclass

from mbq_train.quantize.specs import Spec, flag_of, spec_types


def setting(default, help, *, group=None, **limits):
    """Return an option with its limits: choices, low, high, above, below; recipe: the only one it belongs to; group:
    what the command's help shows it under [its recipe, or training]."""
    return field(default=default, metadata={"help": help, "group": group or limits.get("recipe", "training"), **limits})


def _of_specs() -> dict[str, list[tuple[str, Field]]]:
    """Return the options of all quantizers by their names on the command line: the kinds that have each, and its field.
    """
    found = {}
    for name, kind in spec_types(Spec).items():
        for each in fields(kind):
            if (flag := flag_of(each)):
                found.setdefault(flag, []).append((name, each))
    return found


def _of_flag(flag: str) -> tuple:
    """Return name, type and field of an option of quantizers, as its spec describes it; None becomes 0."""
    owners = [name for name, _ in SPEC_OPTIONS[flag]]
    described = SPEC_OPTIONS[flag][0][1]
    default = 0 if described.default is None else described.default
    alone = described.metadata["of"] == "weights" and len(owners) == 1
    limits = {"choices": described.metadata["choices"]} if described.metadata["choices"] else {}
    help = f"{owners[0]}: {described.metadata['help']}" if alone else described.metadata["help"]
    return flag, type(default), setting(default, help, group="quantizers", **limits)


SPEC_OPTIONS = _of_specs()
SpecOptions = make_dataclass("SpecOptions", map(_of_flag, SPEC_OPTIONS), frozen=True)
