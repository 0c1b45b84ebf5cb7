"""Numbers with their protocols: unequal ones refuse to be compared."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ditkit.diffusion import CFG, SamplerSettings
from ditkit.evaluation.protocols import (
    OUTCOMES,
    Protocol,
    ProtocolMismatch,
    Rules,
    Score,
    compare,
    differences,
    in_words,
)


def protocol(**changes) -> Protocol:
    base = {
        "n": 1000,
        "labels": "random",
        "sampler": {"solver": "euler", "steps": 25},
        "evaluations": 25,
        "extractor": "classifier-1",
        "reference": "abc",
        "reference_n": 1797,
        "seed": 0,
    }
    return Protocol(**{**base, **changes})


def score(value: float, interval=None, metric="frechet", better="lower", **changes) -> Score:
    return Score(metric=metric, value=value, interval=interval, better=better, protocol=protocol(**changes))


CHANGES = {
    "name": "mine",
    "n": 2000,
    "size": (512, 512),
    "labels": "balanced",
    "prompts": "0123456789abcdef",
    "text": "clip-l+g",
    "sampler": {"solver": "heun", "steps": 25},
    "guidance": {"kind": "cfg", "scale": 1.5},
    "autoguide": "0123456789abcdef",
    "codec": "kl-1",
    "quantiser": "floor_255",
    "resize": "bicubic 299",
    "extractor": "teacher",
    "reference": "def",
    "reference_n": 10,
    "seed": 1,
    "rules": Rules(distances="adm"),
}


def test_every_field_of_the_protocol_matters():
    assert set(CHANGES) == set(Protocol.model_fields) - set(OUTCOMES)


def test_evaluations_are_an_outcome():
    """An adaptive solver spends what the weights ask for: two models sampled alike may be compared."""
    a, b = score(10.0, evaluations=50.0), score(9.0, evaluations=52.0)
    assert compare(a, b).forced is False and a.protocol.fingerprint == b.protocol.fingerprint


def test_device_and_resize_of_the_real_images_are_told_and_not_compared():
    """Real images are known by their pixels; another device is meant to change nothing."""
    a = score(10.0, arithmetic="cuda, TF32 in convolutions", reference_resize="cut to 8x8 from other sizes")
    b = score(9.0, arithmetic="cpu", size=(8, 8), text="t5", prompts="01", autoguide="a0", guidance={"scale": 2.0})
    same = score(9.0, arithmetic="cpu")
    assert compare(a, same).forced is False and a.protocol.fingerprint == same.protocol.fingerprint
    told = a.protocol.sentence()
    assert "scored on cuda, TF32 in convolutions" in told and "(abc, cut to 8x8 from other sizes)" in told
    told = b.protocol.sentence()
    assert "images of 8x8" in told and "read by t5" in told and "by weights a0" in told


def test_scores_of_earlier_versions_are_read():
    """Their protocols have neither size nor encoder: untold, and so not compared with new ones unless forced."""
    told = score(3.0).model_dump(mode="json")
    for key in ("size", "text", "autoguide", "arithmetic", "reference_resize"):
        del told["protocol"][key]
    old = Score.model_validate(told)
    assert old.protocol.size is None
    with pytest.raises(ProtocolMismatch, match=r"size: None against \[8, 8\]"):
        compare(old, score(3.0, size=(8, 8)))


@pytest.mark.parametrize("key", CHANGES)
def test_any_difference_is_refused_named_and_can_be_forced(key):
    way = ("precision", "higher") if key == "rules" else ("frechet", "lower")
    a, b = (score(v, None, *way, **changes) for v, changes in ((10.0, {}), (9.0, {key: CHANGES[key]})))
    with pytest.raises(ProtocolMismatch, match=f"cannot be compared: {key}") as raised:
        compare(a, b)
    assert {d.key.split(".")[0] for d in raised.value.differences} == {key}
    assert a.protocol.fingerprint != b.protocol.fingerprint
    forced = compare(a, b, force=True)
    assert forced.forced and forced.difference == -1.0
    assert compare(a, b, ignore=(key,)).forced is False


def test_a_rule_matters_to_its_own_metrics_only():
    rules = {"rules": Rules(distances="adm", split=1000)}
    for metric, found in (
        ("frechet", []),
        ("recall", ["rules.distances"]),
        ("inception_score", ["rules.split"]),
    ):
        assert [d.key for d in differences(score(1.0, None, metric), score(1.0, None, metric, **rules))] == found


def test_every_difference_is_named_in_one_line():
    with pytest.raises(ProtocolMismatch) as raised:
        compare(score(1.0), score(2.0, seed=1, labels="balanced", sampler={"solver": "euler", "steps": 50}))
    text = str(raised.value)
    assert "\n" not in text
    for part in ("labels: 'random' against 'balanced'", "sampler.steps: 25 against 50", "seed: 0 against 1"):
        assert part in text
    assert "solver" not in text


def test_different_metrics_are_refused_even_by_force():
    with pytest.raises(ProtocolMismatch, match="metric: 'frechet' against 'recall'"):
        compare(score(1.0), score(2.0, metric="recall"), force=True)


def test_equal_protocols_compare():
    found = compare(score(10.0, (9.0, 11.0)), score(7.0, (6.0, 8.0)))
    assert found.verdict == "better" and found.relative == pytest.approx(-0.3) and not found.forced
    assert compare(score(7.0, (6.0, 8.0)), score(10.0, (9.0, 11.0))).verdict == "worse"
    assert compare(score(10.0, (9.0, 11.0)), score(9.5, (8.5, 10.5))).verdict == "unclear"
    higher = [score(v, (v - 0.01, v + 0.01), "agreement", "higher") for v in (0.9, 0.95)]
    assert compare(*higher).verdict == "better" and compare(*higher[::-1]).verdict == "worse"
    assert compare(score(0.0), score(1.0)).relative is None
    apart = compare(score(10.0, (9.0, 11.0)), score(8.3, (7.3, 9.3)))  # limits overlap, their difference is clear
    assert apart.verdict == "better" and apart.interval == pytest.approx((-1.7 - 2**0.5, -1.7 + 2**0.5))
    lopsided = compare(score(10.0, (9.0, 13.0)), score(12.0, (11.0, 12.5)))  # uses the limits that face each other
    assert lopsided.interval == pytest.approx((2 - 10**0.5, 2 + 1.25**0.5)) and lopsided.verdict == "unclear"
    assert compare(score(1.0), score(1.0)).verdict == "equal"
    assert compare(score(1.0, (0.5, 1.5)), score(1.0, (0.5, 1.5))).verdict == "equal"


def test_words_do_not_claim_more_than_was_measured():
    names = ("SiT", "REPA")
    clear = in_words(score(20.0, (19.0, 21.0)), score(15.0, (14.0, 16.0)), names, "Distance")
    assert clear == "Distance: REPA is 25% lower than SiT (15 against 20), which is better."
    unclear = in_words(score(20.0, (18.0, 22.0)), score(19.0, (17.0, 21.0)), names, "Distance")
    assert "no clear difference" in unclear and "better" not in unclear
    assert "equals" in in_words(score(1.0), score(1.0), names, "Distance")
    with pytest.raises(ProtocolMismatch):
        in_words(score(1.0), score(1.0, seed=2), names, "Distance")


def test_scores_are_stored_with_their_protocol():
    one = score(3.25, (3.0, 3.5), guidance={"scale": 1.5})
    assert Score.model_validate_json(one.model_dump_json()) == one
    with pytest.raises(ValidationError):
        Score(metric="frechet", value=1.0, better="lower")
    with pytest.raises(ValidationError):
        score(float("nan"))


def test_sentence_tells_all():
    text = protocol(guidance={"kind": "cfg", "scale": 1.5}).sentence()
    for part in ("1,000 images", "random labels", "euler 25", "guidance 1.5", "25 network evaluations", "uint8 round"):
        assert part in text
    for part in ("resize none", "classifier-1", "1,797 real images (abc)", "seed 0"):
        assert part in text
    assert "no guidance" in protocol().sentence()


def test_sentence_leaves_defaults_out():
    guidance = CFG(scale=1.5).model_dump(mode="json")
    sampler = SamplerSettings(solver="euler", steps=25).model_dump(mode="json", exclude={"guidance"})
    text = protocol(guidance=guidance, sampler=sampler).sentence()
    assert "euler 25, guidance 1.5, 25 network" in text
    sampler |= {"shift": 2.0, "options": {"form": "linear"}}
    text = protocol(guidance={**guidance, "high": 0.7, "channels": 3}, sampler=sampler).sentence()
    assert "euler 25 form linear shift 2.0, guidance 1.5 high 0.7 channels 3, " in text
    given = protocol(sampler={}, labels="given", evaluations=0, quantiser="given").sentence()
    assert "1,000 given images" in given and "evaluations" not in given
