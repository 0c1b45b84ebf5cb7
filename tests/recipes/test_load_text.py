"""Published text models as `ditkit.load` opens them: the row's recipe, its encoders, and what a user may change."""

from __future__ import annotations

import pytest
import torch

from ditkit.checkpoints import Published
from ditkit.config import dump
from ditkit.diffusion import Linear
from ditkit.models import SD3_SIZES, mmdit_settings, repa_mmdit_settings
from ditkit.recipes.load import load, recipe_of
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.sampling import Choices, check_codec, choose_request, choose_sampler, open_model

CPU = torch.device("cpu")


def published(settings, source, projectors=None):
    return Published(torch.nn.Identity(), Linear(), "velocity", projectors, None, settings, source)


@pytest.mark.parametrize(
    ("settings", "source", "name"),
    [
        (SD3_SIZES["sd3-medium"], "sd3", "sd3.medium"),
        (SD3_SIZES["sd3.5-medium"], "diffusers-sd3", "sd3.medium_3_5"),
        (SD3_SIZES["sd3.5-large"], "sd3", "sd3.large_3_5"),
        (repa_mmdit_settings(), "repa-mmdit", "repa_t2i.coco_plain"),
    ],
)
def test_a_published_size_has_its_rows_recipe(settings, source, name):
    found = recipe_of(published(settings, source))
    assert (found.name, found.model) == (name, settings)


def test_another_size_stands_on_the_nearest_row():
    settings = mmdit_settings(2, size=(16, 24), channels=4)
    found = recipe_of(published(settings, "sd3"))
    assert found.model == settings and found.data.size == (128, 192) and found.data.buckets is None
    assert (found.sampling.solver, found.sampling.spacing, found.text.kind) == ("dpmpp_2m", "sd3", "sd3")
    assert Recipe.model_validate_json(dump(found, "json")) == found, "what stands in is itself a recipe"
    assert "training" in found.unpublished


def test_a_recorded_file_opens_and_asks_for_its_encoders(reference, tmp_path):
    file = tmp_path / "sd35.pt"
    torch.save(reference("sd35_mmditx_plain").state, file)
    loaded = load(file, source="sd3")
    assert loaded.recipe.text.kind == "sd3" and loaded.captions == () and loaded.encoder == ""
    with pytest.raises(ValueError, match="give --prompt TEXT"):
        choose_request(loaded, Choices(), 64)
    request = choose_request(loaded, Choices(prompts=("a cat",)), 64)
    assert request.n == 4
    sampling, _ = choose_sampler(loaded, Choices(guidance=3.0), ["sampling.steps=4"])
    assert (sampling.shift, sampling.steps, sampling.guidance.scale) == (3.0, 4, 3.0)
    spoken = open_model(file, "sd3", Choices(text="toy", codec="pixels"), CPU)
    with pytest.raises(ValueError, match="toy-text-48-16-0 gives 48: name its own by --text"):
        check_codec(spoken)
    without = open_model(file, "sd3", Choices(without="t5"), CPU)
    assert (without.recipe.text.t5, without.recipe.text.clip_l) == ("none", "")
