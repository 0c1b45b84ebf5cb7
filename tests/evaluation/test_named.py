"""Named protocols: what each fixes, and that a name cannot be had without its facts."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ditkit.evaluation.named import ADM_SUITE, NAMED, find_protocol, of_family
from ditkit.evaluation.protocols import Protocol, Rules

ADM = {
    "name": "adm-imagenet256-50k", "n": 50_000, "size": (256, 256), "labels": "random", "evaluations": 250,
    "sampler": {"solver": "ddpm", "steps": 250}, "extractor": "adm-inception-0123abcd", "reference": "f00d",
    "rules": Rules(distances="adm"),
}  # fmt: skip
RFID = {
    "name": "rfid-imagenet-val", "n": 50_000, "labels": "none", "evaluations": 0, "reference_n": 50_000,
    "extractor": "adm-inception-0123abcd", "reference": "f00d", "sampler": {"posterior": "mean"},
}  # fmt: skip
COCO = {**ADM, "name": "coco-30k", "n": 30_000, "labels": "prompts", "reference_n": 30_000}


def test_the_names_that_papers_need_are_there():
    assert list(NAMED) == ["adm-imagenet256-50k", "adm-imagenet512-50k", "rfid-imagenet-val", "coco-30k", "custom"]
    for name, found in NAMED.items():
        assert found.name == name and found.purpose
        assert name == "custom" or (found.n and found.reference and found.serves and found.origin and found.caution)
    assert NAMED["adm-imagenet256-50k"].metrics == ADM_SUITE
    assert "never comparable with a gFID" in NAMED["rfid-imagenet-val"].caution


def test_who_meets_all_facts_may_take_the_name():
    for facts in (
        ADM,
        {**ADM, "labels": "balanced"},
        {**ADM, "labels": "given", "sampler": {}},
        RFID,
        COCO,
        {**COCO, "reference_n": 40_504},
    ):
        assert Protocol(**facts).name == facts["name"]


@pytest.mark.parametrize(
    ("facts", "changes", "says"),
    [
        (ADM, {"n": 10_000}, "n must be 50000, not 10000"),
        (ADM, {"resize": "bicubic 299"}, "resize must be 'none', not 'bicubic 299'"),
        (ADM, {"extractor": "classifier-1"}, "extractor must be 'adm-inception', not 'classifier-1'"),
        (ADM, {"extractor": "adm-inceptionist"}, "extractor must be 'adm-inception', not 'adm-inceptionist'"),
        (ADM, {"labels": "prompts"}, "labels must be .*, not 'prompts'"),
        (ADM, {"labels": "given"}, "labels must be .*, not 'given'"),  # classes that the user picked
        (ADM, {"rules": Rules()}, "rules.distances must be 'adm', not 'float64'"),
        (ADM, {"rules": Rules(distances="adm", split=500)}, "rules.split must be 5000, not 500"),
        (ADM, {"size": (512, 512)}, "images must be 256x256, not 512x512"),
        (ADM, {"size": None}, "images must be 256x256, not of an untold size"),
        (ADM, {"sampler": {"posterior": "mean"}}, "it is of samples, not of reconstructions"),
        (RFID, {"sampler": {"solver": "euler", "steps": 250}}, "it is of reconstructions, not of samples"),
        (RFID, {"sampler": {}}, "it is of reconstructions, not of samples"),
        (COCO, {"reference_n": 10_000}, "it has 30,000 or 40,504 real images, here are 10,000"),
        (RFID, {"reference_n": 1_281_167}, "it has 50,000 real images, here are 1,281,167"),
    ],
)
def test_every_fact_is_held(facts, changes, says):
    with pytest.raises(ValidationError, match=says):
        Protocol(**{**facts, **changes})


def test_psnr_and_ssim_of_reconstructions_carry_the_name():
    """They look through no network; a Frechet distance in pixels is no rFID, and ADM's names have no such score."""
    assert Protocol(**{**RFID, "extractor": "images"}).name == "rfid-imagenet-val"
    for facts, extractor in ((ADM, "images"), (RFID, "pixels-3x256x256")):
        with pytest.raises(ValidationError, match="extractor must be"):
            Protocol(**{**facts, "extractor": extractor})


def test_everything_that_is_wrong_is_named():
    with pytest.raises(ValidationError, match=r"n must be .*; extractor must be .*; rules\.distances must be"):
        Protocol(**{**ADM, "n": 5, "extractor": "toy", "rules": Rules()})


def test_images_are_checked_before_anything_is_scored():
    adm = NAMED["adm-imagenet512-50k"]
    assert adm.unmet_by_images(50_000, (512, 512)) == []
    assert adm.unmet_by_images(64, (256, 256)) == ["n must be 50000, not 64", "images must be 512x512, not 256x256"]
    assert NAMED["custom"].unmet_by_images(3, (8, 8)) == []


def test_a_slip_of_a_name_is_refused_and_own_words_are_not():
    assert find_protocol("coco-30k") is NAMED["coco-30k"]
    assert find_protocol("digits-demo") is None
    with pytest.raises(ValueError, match="did you mean 'adm-imagenet256-50k'"):
        find_protocol("ADM-imagenet256-50k")


def test_a_family_of_extractors_is_its_name_and_a_hash():
    assert of_family("adm-inception", "adm-inception") and of_family("adm-inception-12", "adm-inception")
    assert not of_family("adm-inception2-12", "adm-inception")
