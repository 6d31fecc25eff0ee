"""Recipes: what a training does beyond its plain loop."""

from .registry import recipe_type
from .recipe import Recipe

__all__ = ["Recipe", "recipe_type"]
