"""The training loop, and what a recipe can change in it."""
