"""Recipes: one paper per file, one function per published row; found by name, in a file, or in one's own Python."""

from ditkit.recipes.recipe import Published, Recipe
from ditkit.recipes.registry import RECIPES, recipe

__all__ = ["RECIPES", "Published", "Recipe", "recipe"]
