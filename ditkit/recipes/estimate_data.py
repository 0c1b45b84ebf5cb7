"""A recipe fitted to data without loading what would make latents of them."""

from __future__ import annotations

from collections.abc import Sequence

from ditkit.data import DataSettings, ImageSource, open_source
from ditkit.data.cache import Cache
from ditkit.models import token_side
from ditkit.recipes.adapt import adapt
from ditkit.recipes.benches.random_job import FACTOR
from ditkit.recipes.recipe import Recipe


def fitted(recipe: Recipe, overrides: Sequence[str]) -> tuple[Recipe, int, bool]:
    """(the recipe as `train` would fit it to its data, images, whether these are a cache).

    An autoencoder is taken to have the network's channels and a factor of 8. Text recipes keep their sizes. Raises
    DataError or ValueError, one line.
    """
    keep = {text.partition("=")[0].strip() for text in overrides}
    pixels = recipe.codec.kind == "pixels"
    data: DataSettings = recipe.data if pixels else recipe.data.model_copy(update={"channels": 3})
    factor = 1 if pixels else FACTOR
    source: ImageSource = open_source(
        data, multiple=factor * token_side(recipe.model), captioned=recipe.text is not None,
        batch=recipe.training.batch,
    )  # fmt: skip
    cached = isinstance(source, Cache)
    if recipe.text is None:
        channels = source.channels if pixels else recipe.model.channels
        recipe = adapt(recipe, source, channels=channels, factor=factor, keep=keep, text=None)
    return recipe, len(source), cached
