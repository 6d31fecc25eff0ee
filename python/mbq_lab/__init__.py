"""The laboratory around mbq_train: data sets, networks, recipes, runs in folders, and the command mbq."""

from .data import Data, DataError, load_data
from .models import Decoder, build_model
from .options import Options
from .runs.dry_run import DryRun, dry_run
from .runs.evaluation import Evaluation, evaluate_run
from .runs.networks import load_quantized
from .runs.observer import Observer
from .runs.run import Result, resume_run, train_run
from .runs.sensitivity import Sensitivities, sensitivity_of_run
from .training.interrupt import Interrupted
from .training.loop import State, Training, evaluate
from .training.recipe import Recipe

__all__ = [
    "Data", "DataError", "Decoder", "DryRun", "Evaluation", "Interrupted", "Observer", "Options", "Recipe", "Result",
    "Sensitivities", "State", "Training", "build_model", "dry_run", "evaluate", "evaluate_run", "load_data",
    "load_quantized", "resume_run", "sensitivity_of_run", "train_run",
]
