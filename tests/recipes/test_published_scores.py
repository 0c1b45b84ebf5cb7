"""Measured beside published: every difference is named, and a gap is not called real for nothing."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from ditkit.evaluation import Protocol, Score
from ditkit.evaluation.named import NAMED
from ditkit.evaluation.protocols import Rules
from ditkit.recipes import recipe
from ditkit.recipes.published_scores import COLUMNS, Scored, published_table, scored, unlike
from ditkit.recipes.score_files import Scores, SpaceScores

ROW = next(p for p in recipe("dit.xl_2_256").published if p.fid == 2.27 and p.table == "DiT Table 2")


def protocol(**changes) -> Protocol:
    """As DiT's Table 2 has it."""
    sampling = ROW.sampling
    facts = {
        "name": "adm-imagenet256-50k", "n": 50_000, "size": (256, 256),
        "labels": "random", "evaluations": 500, "codec": "kl-1",
        "sampler": sampling.model_dump(mode="json", exclude={"guidance"}), "quantiser": ROW.quantise,
        "guidance": sampling.guidance.model_dump(mode="json"), "extractor": "adm-inception-0123abcd",
        "reference": "f00d", "rules": Rules(**NAMED["adm-imagenet256-50k"].rules),
    }  # fmt: skip
    return Protocol(**{**facts, **changes})


def scores(fid: float, limits=(2.2, 2.3), **changes) -> Scores:
    found = [("frechet", fid, limits, "lower"), ("recall", 0.57, None, "higher")]
    made = [Score(metric=m, value=v, interval=i, better=b, protocol=protocol(**changes)) for m, v, i, b in found]
    space = SpaceScores(extractor=made[0].protocol.extractor, floor={}, scores=tuple(made))
    return Scores(what="x", data="VIRTUAL", spaces={"inception": space})


OURS = Scored(7_000_000, True, "/data/imagenet/train")  # a training of one's own, as the paper has it


def line_of(table, says: str) -> str:
    return next(remark for remark in table.remarks if says in remark)


def test_the_same_protocol_is_said_to_be_the_same():
    row = recipe("dit.xl_2_256")
    assert unlike(ROW, row, protocol(), OURS) == []
    table = published_table(row, scores(2.25), OURS)
    assert table.lines[0] == ("measured", "2.25", "", "", "", "0.57")
    assert ("DiT Table 2, 7,000,000 steps", "2.27", "4.6", "278.24", "0.83", "0.57") in table.lines
    assert all(len(line) == 1 + len(COLUMNS) for line in table.lines)
    mine = [remark for remark in table.remarks if "same protocol" in remark and "FID: a gap of -0.02" in remark]
    assert mine and "within the noise" in mine[0]
    assert "neither reference f00d nor network adm-inception-0123abcd is verified by a published checksum" in mine[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "custom", "n": 10_000}, "images 50,000, here 10,000"),
        ({"labels": "balanced"}, "labels random, here balanced"),
        ({"quantiser": "round"}, "uint8 truncate_128, here round"),
        ({"guidance": None}, "no guidance"),
        ({"name": "custom", "reference_n": 1797}, "here adm-inception-0123abcd and 1,797 images"),
        ({"labels": "given", "sampler": {}, "codec": "given"}, "here untold"),
    ],
)
def test_every_difference_is_named(changes, says):
    apart = unlike(ROW, recipe("dit.xl_2_256"), protocol(**changes), OURS)
    assert any(says in difference for difference in apart), apart


def test_other_weights_and_decoders_are_differences():
    row = recipe("dit.xl_2_256")
    for changes, says in {
        ("step", 400_000): "weights of step 7,000,000, here 400,000",
        ("averaged", False): "weights averaged, here raw",
        ("data", "digits"): "trained on imagenet/train, here digits",
    }.items():
        assert unlike(ROW, row, protocol(), dataclasses.replace(OURS, **dict([changes]))) == [says]
    mse = row.with_({"codec.source": "stabilityai/sd-vae-ft-mse"})
    assert unlike(ROW, mse, protocol(), OURS) == ["decoder stabilityai/sd-vae-ft-ema, here stabilityai/sd-vae-ft-mse"]


def test_a_file_that_does_not_tell_its_training_is_not_called_the_same():
    """Rows of 400,000 and of 7,000,000 steps are of one network: a file of its weights may be either, or neither."""
    row = recipe("dit.xl_2_256")
    untold = ["weights of step 7,000,000, here untold", "weights averaged, here untold"]
    assert unlike(ROW, row, protocol(), Scored()) == [*untold, "trained on imagenet/train, here untold"]
    table = published_table(row, scores(2.25))
    assert all("same protocol" not in remark and "a gap of" not in remark for remark in table.remarks)
    assert f"not known to be comparable: {untold[0]}" in line_of(
        table, "guidance 1.5 on the first 3 channels: not known"
    )


def test_what_a_loaded_model_tells_of_its_weights():
    mine = recipe("dit.xl_2_256").with_({"data.source": "/mine"})
    file = SimpleNamespace(recipe=mine, source="dit", weights="flat", step=None)
    run = SimpleNamespace(recipe=mine, source="ditkit", weights="raw", step=9)
    assert scored(file) == Scored() and scored(run) == Scored(9, False, "/mine")


def test_a_gap_is_judged_as_that_of_another_training_and_only_where_nothing_differs():
    """2.31 against 2.27: other samples do not explain it, another training seed would."""
    row, close = recipe("dit.xl_2_256"), scores(2.31, limits=(2.30, 2.32))
    assert "another training seed" in line_of(published_table(row, close, OURS), "FID: a gap of +0.04")
    apart = published_table(row, close, dataclasses.replace(OURS, averaged=False))
    assert not any("a gap of" in remark or "noise" in remark for remark in apart.remarks)


def test_without_inception_nothing_is_claimed():
    other = scores(2.25, name="custom", extractor="pixels-3x16x16", reference_n=10, n=30)
    table = published_table(recipe("dit.xl_2_256"), other)
    assert table.lines[0] == ("measured: not with Inception", "", "", "", "", "")
    assert "features and reference ADM evaluator, full training set, here pixels-3x16x16" in table.remarks[0]
    assert not any("gap" in remark for remark in table.remarks)


def test_another_network_or_nothing_published_gives_no_table():
    assert published_table(recipe("dit.xl_2_256").with_({"model.num_classes": 4}), scores(2.25)) is None
    assert published_table(recipe("sit.s_2"), scores(2.25)) is None


def test_rows_of_the_sampler_in_use_come_alone():
    row = recipe("sit.xl_2_256")
    every = published_table(row, scores(2.25, sampler={"solver": "euler", "steps": 3}))
    sampler = row.sampling.model_dump(mode="json", exclude={"guidance"})
    some = published_table(row, scores(2.25, sampler=sampler))
    assert 0 < len(some.remarks) < len(every.remarks) == len(row.published)
