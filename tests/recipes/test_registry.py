"""Finding recipes: names, settings files, one's own Python; every mistake answered in one line."""

from __future__ import annotations

import pytest

from ditkit.config import SettingsError, diff, dump
from ditkit.recipes import RECIPES, Recipe, recipe

BIG = """
from ditkit.recipes import recipe

def big():
    return recipe("sit.b_2").with_({"model.depth": 18})

def number():
    return 3

def typo():
    return recipe("sit.b_2").with_({"model.deepth": 18})

def constructed():
    from ditkit.training import TrainSettings
    return TrainSettings(stepps=3)

def broken():
    return undefined_name
"""


def line(spec, overrides=()) -> str:
    with pytest.raises(SettingsError) as caught:
        recipe(spec, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(BIG)
    return file


def test_a_name_finds_its_recipe_and_is_kept():
    for name in RECIPES:
        assert recipe(name).name == name
        assert isinstance(hash(recipe(name).model), int)


def test_overrides_apply():
    made = recipe("dit.xl_2_256", ["training.lr=2e-4", "sampling.guidance.scale=4", "sampling.guidance.channels=none"])
    assert made.training.lr == 2e-4
    assert (made.sampling.guidance.scale, made.sampling.guidance.channels) == (4.0, None)
    assert recipe("sit.b_2", ["objective.path=cosine"]).objective.path.kind == "cosine"
    assert recipe("repa.b_2_256", ["sampling.options.norm=0.5"]).sampling.options["norm"] == 0.5
    assert recipe("repa.b_2_256", ["align.similarity=nt_xent"]).align.similarity.temperature == 0.1
    assert recipe("repa.b_2_256", ["align=none", "teachers=[]"]).align is None


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        ("dit.xl_2_25", "dit.xl_2_25: no such recipe; did you mean 'dit.xl_2_256'"),
        ("xl_2_512", "did you mean 'dit.xl_2_512' or 'sit.xl_2_512' or 'repa.xl_2_512' or 'ddt.xl_2_512'?"),
        ("repa.sit_s2", "did you mean 'repa.sit_s_2'"),
        ("something else entirely", "no such recipe (ditkit show lists all)"),
        ("nowhere.yaml", "nowhere.yaml: no such settings file"),
        ("nowhere.py:big", "nowhere.py: no such file"),
    ],
)
def test_unknown_names(spec, answer):
    assert answer in line(spec)


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("training.lrr=1", "training.lrr: unknown key; did you mean 'training.lr'?"),
        (
            "objective.path.beta_max=3",
            "objective.path.beta_max: objective.path is of a kind that has no such key; set objective.path.kind first",
        ),
        ("sampling.solver=hein", "solver 'hein' is not known; did you mean 'heun'?"),
        ("sampling.options.nrm=1", "no option 'nrm'; did you mean 'norm'?"),
        ("align.depth=30", "align.depth 30 is beyond the model's 12 blocks"),
        ("model.heads=5", "width 768 is not a multiple of heads 5"),
    ],
)
def test_bad_overrides(override, answer):
    assert answer in line("repa.b_2_256", [override])


def test_own_python(mine):
    made = recipe(f"{mine}:big")
    assert (made.model.depth, made.name) == (18, f"{mine}:big")
    assert {row.key for row in diff(made, recipe("sit.b_2"), ignore=["name"])} == {"model.depth"}
    assert recipe(f"{mine}:big", ["training.steps=5"]).training.steps == 5


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        (":bog", "no function 'bog'; did you mean 'big'?"),
        ("", "which recipe? write"),
        (":number", "returned int, not a Recipe"),
        (":typo", "mine.py, line 11: model.deepth: unknown key; did you mean 'model.depth'?"),
        (":constructed", "TrainSettings.stepps: Extra inputs are not permitted"),
        (":broken", "line 18: NameError: name 'undefined_name' is not defined"),
    ],
)
def test_mistakes_in_own_python_are_one_line(mine, function, answer):
    assert answer in line(f"{mine}{function}")


def test_the_line_is_found_in_a_relative_path_too(mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    assert "line 18: NameError" in line(f"./{mine.name}:broken")


def test_a_settings_file_of_own_images_takes_their_size(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: repa.sit_s_2\ndata: {source: my_images}\n")
    assert (recipe(file).data.size, recipe(file).data.channels) == (None, None)


def test_a_file_that_does_not_parse(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("def big(:\n")
    assert "bad.py, line 1: SyntaxError" in line(f"{file}:big")


def test_settings_file_with_base(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: sit.b_2\ntraining: {lr: 2e-4}\nobjective: {density: {kind: logit_normal}}\n")
    made = recipe(file)
    changed = {row.key for row in diff(recipe("sit.b_2"), made, ignore=["name", "source"])}
    assert {"training.lr", "objective.density.kind", "objective.density.mean"} <= changed
    assert all(key == "training.lr" or key.startswith("objective.density.") for key in changed)
    derived = tmp_path / "derived.yaml"
    derived.write_text("base: mine.yaml\ntraining: {steps: 7}\n")
    assert (recipe(derived).training.steps, recipe(derived).training.lr) == (7, 2e-4)


def test_a_changed_recipe_claims_no_published_row(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: dit.xl_2_256\nmodel: {depth: 4}\n")
    assert recipe(file).published == () and recipe(file).source == "from dit.xl_2_256"


@pytest.mark.parametrize("name", ["repa.xl_2_256", "digits.repa", "sit.b_2_256_gvp_score"])
@pytest.mark.parametrize("form", ["json", "yaml"])
def test_a_resolved_recipe_reads_back_equal(tmp_path, name, form):
    made = recipe(name)
    (tmp_path / f"recipe.{form}").write_text(dump(made, form))
    assert recipe(tmp_path / f"recipe.{form}") == made
    if form == "json":
        assert recipe(tmp_path) == made, "a run folder stands for its recipe"


def test_bad_settings_files(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: sit.b_2\ntrainig: {lr: 2e-4}\n")
    assert line(file) == f"{file}: trainig: unknown key; did you mean 'training'?"
    file.write_text("base: sit.b_22\n")
    assert "did you mean 'sit.b_2'" in line(file)
    file.write_text("base: [sit.b_2]\n")
    assert "base is one recipe's name or file" in line(file)
    file.write_text("base: other.yaml\n")
    (tmp_path / "other.yaml").write_text("base: mine.yaml\n")
    assert line(file).endswith("the recipe is its own base, by way of mine.yaml -> other.yaml -> mine.yaml")
    (tmp_path / "other.yaml").write_text("base: sit.b_2\ntraining: {steps: 7}\n")
    assert recipe(file).training.steps == 7
    file.write_text("title: alone\n")
    assert f"{file}: model, data, codec, objective, training, sampling are missing; begin with `base: NAME`" in line(
        file
    )
    file.write_text("")
    assert "title, model, data" in line(file) and "`base: NAME`" in line(file)


def test_a_folder_that_is_no_run(tmp_path):
    assert "nope: no such run folder or recipe" in line(tmp_path / "nope")
    assert "a folder without recipe.json is no run" in line(tmp_path)


def test_recipes_are_data():
    made = recipe("dit.xl_2_256")
    assert isinstance(made, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        made.title = "other"
