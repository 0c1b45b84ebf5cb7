"""`ditkit show`: lists, prints, compares, costs; bad input is one line and exit code 2."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from ditkit.cli import app
from ditkit.recipes import RECIPES, recipe


def run(*words: str):
    return CliRunner().invoke(app, ["show", *words])


def text(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_lists_every_recipe_with_its_published_score():
    lines = {line.split()[0]: line for line in text().splitlines()}
    assert set(RECIPES) <= set(lines)
    assert "675M" in lines["dit.xl_2_256"] and "9.62" in lines["dit.xl_2_256"]
    assert "7.9" not in lines["repa.xl_2_256"] and "5.9" in lines["repa.xl_2_256"] and "1.42" in lines["repa.xl_2_256"]
    assert "68.38" in lines["dit.b_4_256"], "a re-training does not stand for the paper's row"


def test_list_can_be_searched_and_read_by_programs():
    found = json.loads(text("--find", "lambda", "--json"))
    assert [entry["name"] for entry in found] == [f"repa.xl_2_256_lambda_{p}" for p in (25, 75, 100)]


def test_prints_a_recipe_with_marks_and_published_table():
    out = text("repa.l_2_256_dinov2_b")
    assert "temperature: 0.1  # not (fully) published: ours" in out
    assert out.count("# not (fully)") == 1
    assert "REPA Table 3  700,000" in out and "8.4" in out
    assert "note: published in fp16" in out
    assert "steps: 700000" in out


def test_prints_guidance_and_what_stands_in():
    out = text("repa.xl_2_256")
    assert "1.8 on [0, 0.7]" in out
    assert "≈" in text("sit.xl_2_256") and "3 channels" in text("sit.xl_2_256")
    assert "no row; this recipe is not of a paper" in text("repa.sit_s_2")
    assert "no row; the paper gives no score for it" in text("sd3.d24_256")


def test_the_rows_of_a_paper():
    lines = {line.split()[0]: line for line in text("sd3").splitlines()}
    assert set(lines) == {"recipe"} | {name for name in RECIPES if name.startswith("sd3.")}
    assert "GenEval 0.71" in lines["sd3.d38_512"] and "GenEval" not in lines["sd3.d24_256"]
    assert json.loads(text("sd3", "--json", "--find", ""))[0]["name"] == "sd3.medium"


def test_prints_open_intervals_and_shared_encoders():
    """DDT's interval leaves its ends out; a line sampled with a shared encoder says by which rule."""
    lines = [line for line in text("ddt.xl_2_256").splitlines() if line.startswith("DDT Table")]
    shared = [line for line in lines if "euler 250 every:5" in line]
    assert len(shared) == 1 and "2 on (0, 0.7)" in shared[0] and "1.36" in shared[0]
    assert [("1.33" in line) for line in lines if "dp:50" in line] == [True]
    assert "on [0, 0.7]" in text("repa.xl_2_256")


def test_json_is_the_resolved_recipe():
    made = json.loads(text("sit.s_2", "training.lr=2e-4", "--json"))
    assert made["training"]["lr"] == 2e-4
    assert made == recipe("sit.s_2", ["training.lr=2e-4"]).model_dump(mode="json")


def test_diff_shows_dotted_keys():
    out = text("repa.xl_2_256", "--diff", "repa.xl_2_256_lambda_25")
    rows = [line.split() for line in out.splitlines()[1:]]
    assert rows == [["align.weight", "0.5", "0.25"], ["training.steps", "4000000", "400000"]]
    assert "train and sample the same" in text("sit.b_2_256", "--diff", "sit.b_2_256")
    assert json.loads(text("dit.b_2_256", "--diff", "dit.b_4_256", "--json")) == [
        {"key": "model.patch", "a": 2, "b": 4}
    ]


def test_differences_and_costs_together():
    out = text("sit.s_2", "--diff", "sit.b_2", "--cost")
    assert "model.width" in out and "training GMACs" in out and out.count("sit.b_2") == 2


def test_cost_is_the_published_one():
    found = json.loads(text("dit.xl_2_256", "--cost", "--json"))[0]
    assert found["parameters"] == 674_834_720
    assert abs(found["GMACs"] - 118.64) < 0.05
    assert found["training GMACs"] == pytest.approx(3 * 118.64 * 256 * 7e6, rel=1e-3)
    assert "118.6" in text("dit.xl_2_256", "--cost")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("dit.xl_2_25",), "did you mean 'dit.xl_2_256'"),
        (("dit.xl_2_256", "training.lrr=1"), "training.lrr: unknown key; did you mean 'training.lr'?"),
        (("dit.xl_2_256", "training.lr"), "an override is written key=value"),
        (("dit.xl_2_256", "--diff", "nothing_like_it_at_all"), "no such recipe"),
        (("--diff", "sit.b_2"), "--diff compares two recipes"),
        (("sit.s_2", "--diff", "sit.b_2", "--cost", "--json"), "--json prints one thing"),
        (("sit.s_2", "--find", "sit"), "--find searches the list"),
        (("--find", "zzz"), "no recipe's name or title holds 'zzz'"),
        (("nowhere.py:big",), "nowhere.py: no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, answer):
    result = run(*words)
    assert result.exit_code == 2
    assert answer in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_help_has_an_example():
    assert "Example: ditkit show sit.xl_2_256" in text("--help")
