"""Files of scores against each other: what is asked of them before and after anything is sampled."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ditkit.evaluation import Protocol, Score
from ditkit.evaluation.named import NAMED
from ditkit.evaluation.protocols import Rules
from ditkit.recipes.score_files import Scores, SpaceScores, check_comparable, compare_scores
from ditkit.recipes.scoring import Judging, arithmetic, check_protocol, how_sized

ADM = "adm-imagenet256-50k"
EULER = {"solver": "euler", "steps": 4}


def space(extractor: str, value: float = 5.0, **changes) -> SpaceScores:
    facts = {"n": 50_000, "size": (256, 256), "sampler": EULER, "evaluations": 4, "reference": "f00d"}
    protocol = Protocol(**{**facts, "extractor": extractor, **changes})
    score = Score(metric="frechet", value=value, interval=(value - 1, value + 1), better="lower", protocol=protocol)
    return SpaceScores(extractor=extractor, floor={}, scores=(score,))


def stored(**spaces: SpaceScores) -> Scores:
    return Scores(what="there", data="VIRTUAL", spaces=spaces)


def test_a_repetition_is_not_refused_for_a_space_beside_the_named_one():
    named = space("adm-inception-1", name=ADM, rules=Rules(**NAMED[ADM].rules))
    other = stored(dino=space("dinov2-1"), inception=named)
    check_comparable(other, {"name": ADM, "seed": 0})
    with pytest.raises(ValueError, match="the protocols differ: seed 0 there, 1 here"):
        check_comparable(other, {"name": ADM, "seed": 1})
    with pytest.raises(ValueError, match="name 'custom' there, 'adm-imagenet256-50k' here"):
        check_comparable(stored(dino=space("dinov2-1")), {"name": ADM})


def test_named_keys_may_differ():
    there, here = stored(x=space("x")), stored(x=space("x", 4.5, seed=1))
    check_comparable(there, {"seed": 1}, ignore=("seed",))
    assert compare_scores(here, there, False, ("seed",)) == [("x", "frechet", 5.0, 4.5, "unclear")]
    with pytest.raises(ValueError, match="seed 0 there, 1 here"):
        compare_scores(here, there, False)
    with pytest.raises(ValueError, match="--ignore sede: choose from name, n, size"):
        compare_scores(here, there, False, ("sede",))


def test_images_of_unknown_making_are_not_said_to_be_made_alike():
    given = {"sampler": {}, "labels": "given", "evaluations": 0}
    there, here = stored(x=space("x", **given)), stored(x=space("x", 1.0, **given))
    assert compare_scores(here, there, False)[0][-1] == "better (how either was made is not known)"
    assert compare_scores(stored(x=space("x", 1.0)), stored(x=space("x")), False)[0][-1] == "better"


def test_a_reconstructions_name_asks_for_a_codec():
    """50,000 samples against the 50,000 validation images are no rFID."""
    judging = Judging(protocol="rfid-imagenet-val", real=50_000)
    with pytest.raises(ValueError, match="it is of what a codec makes of real images: give --reconstruct CODEC"):
        check_protocol(judging, 50_000, (256, 256), range(50_000))


def test_coco_has_one_of_two_numbers_of_real_images():
    for n in (30_000, 40_504):
        check_protocol(Judging(protocol="coco-30k", real=n), 30_000, (256, 256), range(40_504))
    with pytest.raises(ValueError, match=r"it has 30,000 or 40,504 real images, here are 10,000"):
        check_protocol(Judging(protocol="coco-30k", real=10_000), 30_000, (256, 256), range(40_504))


def test_how_real_images_came_to_their_size():
    source = SimpleNamespace(size=(8, 8), probes=lambda: [0, 1], shape=lambda i: (8, 8 + i))
    assert how_sized(source) == "cut to 8x8 from other sizes by ADM's crop"
    source.probes = lambda: [0]
    assert how_sized(source) == "of their stored size"


def test_the_device_tells_its_products(monkeypatch):
    assert arithmetic(torch.device("cpu")) == "cpu"
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    try:
        torch.set_float32_matmul_precision("highest")
        assert arithmetic(torch.device("cuda")) == "cuda, TF32 in nothing"
        torch.set_float32_matmul_precision("high")
        assert arithmetic(torch.device("cuda")) == "cuda, TF32 in products"
    finally:
        torch.set_float32_matmul_precision(before)
