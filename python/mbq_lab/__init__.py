"""The laboratory around mbq_train: data sets, networks, recipes, runs in folders, and the command mbq."""

import importlib

_HOMES = {  # imported when a name is first used, because torch takes seconds and `mbq --help` needs none of it
    "data": ("Data", "DataError", "data_of", "load_data"),
    "models": ("Decoder", "build_model"),
    "options": ("Options",),
    "runs.dry_run": ("DryRun", "dry_run"),
    "runs.evaluation": ("Evaluation", "evaluate_run"),
    "runs.networks": ("load_quantized",),
    "runs.observer": ("Observer",),
    "runs.run": ("Result", "resume_run", "train_run"),
    "runs.search": ("SearchResult", "search_run"),
    "runs.sensitivity": ("Sensitivities", "sensitivity_of_run"),
    "training.accuracy": ("evaluate",),
    "training.interrupt": ("Interrupted",),
    "training.loop": ("State", "Training"),
    "training.recipe": ("Recipe",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
