"""Recipes: what a training does beyond its plain loop.

A recipe is a file here with a subclass of Recipe, its name in registry.RECIPES, and in options.RECIPE_DEFAULTS with its
defaults; its own options are fields of Options that say recipe="name".
"""

from ..training.recipe import Recipe
from .registry import recipe_type

__all__ = ["Recipe", "recipe_type"]
