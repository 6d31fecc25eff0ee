"""The recipes by their names in Options."""

from ..training.recipe import Recipe
from .emqnet import EmqNet
from .hasb import Hasb
from .msq import Msq

RECIPES = {"plain": Recipe, "double-rounding": Recipe, "hasb": Hasb, "emqnet": EmqNet, "msq": Msq}


def recipe_type(name: str) -> type[Recipe]:
    """Return what makes the recipe that Options calls `name`, with the arguments of Recipe."""
    return RECIPES[name]
