"""`layers`: what is planted in a block is found there, in every family, and sentences say what the numbers say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ditkit.analysis.linear import PaperProbe
from ditkit.checkpoints import load_published
from ditkit.evaluation.uncertainty import share_interval
from ditkit.models import example_condition
from ditkit.pretrained import PretrainedMissing, TeacherSettings
from ditkit.protocols import Condition, Features, Output
from ditkit.recipes.analyses import layers
from ditkit.recipes.analyses.analysis import Found, section_of
from ditkit.recipes.analyses.layers import LayersSettings
from ditkit.recipes.analyses.representation import Bench, How
from ditkit.recipes.analyses.subject import Asked, Pictures, Subject
from ditkit.recipes.load import load, of_published

CLASSES, PLANTED = 4, 3
NOISE = torch.randn(4, 16, 12, generator=torch.Generator().manual_seed(5))  # of each block, from what carries no class


def silent(*_):
    """A progress bar that shows nothing."""


class PlantedModel(nn.Module):
    """Four blocks, of which the third alone reads the corner of x that carries the class; it refuses a label."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def null(self, cond):
        return cond.with_label(torch.full_like(cond.label, 10))

    def forward(self, x, t, cond, *, capture=()):
        assert (cond.label == 10).all() and not self.training
        hidden = {}
        for block in capture:
            corner = x[:, 0, :2, :2].flatten(1)
            tokens = x[:, 0, 4:, 4:].flatten(1) @ NOISE[block - 1]
            if block == PLANTED:
                tokens = torch.cat([3 * corner, tokens[:, :8]], dim=1)
            hidden[block] = tokens[:, None] + torch.tensor([-1.0, 1.0]).view(1, 2, 1)  # the mean token matters
        return Output(x, hidden)


class PlantedTeacher:
    """Sees the class, and nothing else, in the corner of an image."""

    width = 4

    def __init__(self, name="planted", blur=0.0):
        self.id, self.blur = name, blur

    def __call__(self, images, *, grid=None):
        corner = images[:, 0, :2, :2].flatten(1).float() / 255
        tokens = corner + self.blur * images[:, 0, 4, 4:8].float() / 255
        return Features(tokens[:, None].expand(-1, 3, -1), tokens, (1, 3))


def pictures(n, seed):
    """Images whose corner names their class, under weak noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    latents = torch.randn(n, 1, 8, 8, generator=generator)
    latents[:, 0, :2, :2] = (2 * torch.eye(CLASSES)[labels] - 1).view(n, 2, 2) + 0.1 * latents[:, 0, :2, :2]
    images = ((latents / 4).clamp(-1, 1) * 127.5 + 127.5).to(torch.uint8)
    return Pictures(images, labels, latents, Condition(label=labels))


@pytest.fixture
def planted(tiny_run):
    """planted(teachers) -> a Subject around the planted network; its images and teachers are those above."""

    def make(teachers=None, n=120, train=200, name="planted", **asked):
        loaded = load(tiny_run)
        loaded = replace(loaded, model=PlantedModel(), settings=loaded.settings.model_copy(update={"depth": 4}))
        subject = Subject(name, loaded, Asked(n=n, train=train, batch=50, **asked))
        subject.__dict__ |= {"test": pictures(n, 1), "train": pictures(train, 2) if train else None}
        subject.__dict__["teachers"] = {"planted": PlantedTeacher()} if teachers is None else teachers
        return subject

    return make


def measured(subject, **settings):
    return layers.measure(subject, LayersSettings(**settings), silent).result


@pytest.mark.parametrize("probe", ["ridge", "logistic", "paper"])
def test_a_planted_class_is_found_in_its_block_and_fades_with_noise(planted, probe):
    r = measured(planted(n=240), t=(0.1, 0.6, 1.0), probe=probe, lr=0.05)
    assert (r.best.block, r.best.t) == (PLANTED, 0.1) and r.best.value > 0.98
    by = {(look.block, look.t): look for look in r.looks}
    assert len(r.looks) == 12 and r.blocks == (1, 2, 3, 4) and r.classes == CLASSES
    for block in (1, 2, 4):
        assert by[block, 0.1].accuracy < 0.45 and by[block, 0.1].alike["planted"].cknna < 0.09
    assert by[PLANTED, 0.1].accuracy > by[PLANTED, 0.6].accuracy > by[PLANTED, 1.0].accuracy
    assert by[PLANTED, 1.0].accuracy < 0.45
    low, high = r.best.limits
    assert low < r.best.value <= high
    teacher = r.teachers["planted"]
    assert (teacher.best.block, teacher.best.t) == (PLANTED, 0.1) and teacher.best.value > 0.15
    assert teacher.best.limits[0] < teacher.best.value < teacher.best.limits[1]
    assert teacher.own.accuracy == 1 and teacher.gap == pytest.approx(1 - r.best.value, abs=1e-12)
    assert r.how.paper == PaperProbe(lr=0.05)


def test_teachers_are_compared_with_each_other(planted):
    r = measured(planted({"a": PlantedTeacher("a"), "b": PlantedTeacher("b", 0.3)}), t=0.1, blocks="3", probe="none")
    assert [look.block for look in r.looks] == [3] and r.best is None and "no probe" in r.unprobed
    a, b = r.teachers["a"].own.alike["b"], r.teachers["b"].own.alike["a"]
    assert set(r.teachers["a"].own.alike) == {"b"} and 0.05 < a.cka < 0.999 and a.cka == pytest.approx(b.cka)
    shown = layers.ANALYSIS.show({"": Found(r)})
    assert any("both teachers" in line for line in shown.said)
    (panel,) = [p for p in shown.panels if p.title == "CKNNA with a over blocks"]
    assert [s.name for s in panel.series] == ["t = 0.1", "b"] and panel.series[1].y == [a.cknna]


def test_without_teachers_labels_or_training_images(planted):
    alone = measured(planted({}), t=0.1)
    assert alone.best.block == PLANTED and not alone.teachers and not alone.looks[0].alike
    said = " ".join(layers.ANALYSIS.show({"": Found(alone)}).said)
    assert "after block 3 of 4 at t = 0.1" in said and "No teacher to be alike to" in said

    unlabelled = planted()
    unlabelled.train.labels[:] = -1
    r = measured(unlabelled, t=0.1)
    assert r.unprobed == "the images have no classes" and r.best is None and r.teachers["planted"].gap is None
    assert r.teachers["planted"].best.block == PLANTED
    assert "the images have no classes" in " ".join(layers.ANALYSIS.show({"": Found(r)}).said)
    assert "train=0" in measured(planted(train=0), t=0.1).unprobed
    with pytest.raises(ValueError, match="half of 120 images needs k from 2 to 59"):
        measured(planted(), k=120)
    with pytest.raises(ValueError, match="blocks=5: blocks of this model count from 1 to 4"):
        measured(planted(), blocks=(1, 5))
    with pytest.raises(ValueError, match="give times from 0"):
        measured(planted(), t=1.5)


def test_a_missing_teacher_stops_nothing_but_one_that_was_asked_for(planted, monkeypatch):
    def missing(*_):
        raise PretrainedMissing("teacher 'far'", "no network")

    monkeypatch.setattr("ditkit.recipes.analyses.subject.load_teacher", missing)
    there = planted()
    far = {"teachers": (TeacherSettings(kind="dinov2"),)}
    own = Subject("m", there.loaded, there.asked.model_copy(update=far))
    own.__dict__ |= {"test": there.test, "train": there.train}
    r = measured(own, t=0.1)
    assert r.best.block == PLANTED and "cannot load teacher 'far'" in r.missing
    assert any("'far'" in line for line in layers.ANALYSIS.show({"": Found(r)}).said)
    named = Subject("m", there.loaded, there.asked.model_copy(update={**far, "named": True}))
    named.__dict__ |= {"test": there.test, "train": there.train}
    with pytest.raises(PretrainedMissing, match="far"):
        measured(named, t=0.1)


def test_what_is_said_follows_from_the_numbers(planted):
    r = measured(planted(), t=(0.1, 0.9))
    shown = layers.ANALYSIS.show({"": Found(r)})
    said = " ".join(shown.said)
    assert f"{100 * r.best.value:.1f} % of 60 {r.watched}" in said and "where guessing gives 25.0 %" in said
    assert "ahead of every other block at that time, beyond noise" in said and "lowest at t = 0.9" in said
    assert "is right as often as the best block" in said
    unsure = r.teachers["planted"].model_copy(update={"gap": 0.02, "limits": (-0.01, 0.05)})
    told = layers.ANALYSIS.show({"": Found(r.model_copy(update={"teachers": {"planted": unsure}}))}).said
    assert "2.0 points from the best block (limits -1.0 to 5.0) is within noise" in " ".join(told)
    rivals = r.model_copy(update={"best": r.best.model_copy(update={"rivals": (1, 2, 4)})})
    told = layers.ANALYSIS.show({"": Found(rivals)}).said[0]
    assert "it is not ahead of blocks 1, 2 and 4 at that time beyond noise" in told
    titles = [p.title for p in shown.panels]
    assert titles == [
        "Probe accuracy over blocks", "CKNNA with planted over blocks", "Accuracy of the best block over t",
        "CKNNA with planted of the best block over t",
    ]  # fmt: skip
    assert list(shown.tables) == ["Blocks at t = 0.1", "Teachers"] and len(shown.tables["Blocks at t = 0.1"].rows) == 4
    assert "svg" in section_of("Layers", shown).body


def test_models_side_by_side(planted):
    good = measured(planted(name="good"), t=(0.1, 0.9))
    bad = measured(planted(name="bad"), t=(0.1, 0.9), blocks=(1, 2))
    bad = bad.model_copy(update={"parameters": 10 * good.parameters})
    shown = layers.ANALYSIS.show({"bad": Found(bad), "good": Found(good)})
    assert (
        shown.said[0].startswith("In the accuracy of a linear probe good with")
        and "It is ahead of bad by" in shown.said[0]
    )
    assert shown.said[1].startswith("In CKNNA with planted the highest is good with")
    sized = {p.title: p for p in shown.panels}["Best probe accuracy over size"]
    assert {s.name: s.x[0] for s in sized.series} == {"bad": bad.parameters / 1e6, "good": good.parameters / 1e6}
    assert [row[0] for row in shown.tables["Models"].rows] == ["bad", "good"]
    same = layers.ANALYSIS.show({"one": Found(good), "two": Found(good)})
    assert same.said[0].startswith("In the accuracy of a linear probe one and two are equal: ")
    assert "another seed would change is not counted" in same.said[0] and "one and two are equal" in same.said[1]
    assert not [p for p in same.panels if "size" in p.title]


def test_the_best_block_is_chosen_on_one_half_and_measured_on_the_other(planted):
    bench = Bench(planted(), How(), silent)
    lucky, steady = torch.zeros(120, dtype=torch.bool), torch.zeros(120, dtype=torch.bool)
    lucky[::2], lucky[1:41:2] = True, True  # where it is chosen, and 20 of 60 others
    steady[10:] = True
    bench.right |= {(1, 0.5): lucky, (2, 0.5): steady, (3, 0.5): lucky & False, (1, 0.9): steady}
    peak = bench.probe_peak()
    assert (peak.block, peak.t, peak.images) == (1, 0.5, 60) and peak.value == pytest.approx(1 / 3)
    assert peak.rivals == (2,) and peak.right == "1" * 20 + "0" * 40
    bench.begin()
    assert bench.probe_peak() is None


def test_pairs_of_images_tell_apart_what_limits_do_not(planted):
    """One model is right wherever the other is, and on 8 more of 60 images: limits overlap, pairs do not."""
    r = measured(planted(), t=0.1)
    a, b = "1" * 48 + "0" * 12, "1" * 40 + "0" * 20
    one, two = (r.model_copy(update={"best": of_right(r.best, right)}) for right in (a, b))
    assert one.best.limits[0] < two.best.limits[1]
    said = layers.ANALYSIS.show({"one": Found(one), "two": Found(two)}).said[0]
    assert "one with 80.0 % after block 3 at t = 0.1 is ahead" in said and "by 13.3 % (limits" in said
    mixed = of_right(r.best, "0" * 8 + "1" * 40 + "0" * 12)
    other = of_right(r.best, "1" * 39 + "0" * 21)
    close = [Found(r.model_copy(update={"best": p})) for p in (mixed, other)]
    said = layers.ANALYSIS.show({"one": close[0], "two": close[1]}).said[0]
    assert "the highest is one" in said and "within noise of two" in said and "ahead" not in said


def of_right(peak, right):
    """The peak with these images right."""
    value = right.count("1") / len(right)
    return peak.model_copy(update={"right": right, "value": value, "limits": share_interval(value, len(right))})


def test_side_by_side_has_the_teachers_too(planted):
    r = measured(planted({"a": PlantedTeacher("a"), "b": PlantedTeacher("b", 0.3)}), t=0.1)
    panels = {p.title: p for p in layers.ANALYSIS.show({"one": Found(r), "two": Found(r)}).panels}
    probe = panels["Probe accuracy over blocks, each at its best t"].series
    assert [s.name for s in probe] == ["one", "two", "a", "b"] and probe[2].y == [r.teachers["a"].own.accuracy] * 2
    alike = panels["CKNNA with a over blocks, each at its best t"].series
    assert [s.name for s in alike] == ["one", "two", "b"] and alike[2].y[0] == r.teachers["a"].own.alike["b"].cknna


FAMILIES = {
    "dit": ("dit_forward_learnsigma", {"heads": 4}),
    "sit": ("sit_forward", {"heads": 4}),
    "repa": ("repa_forward_1enc", {"heads": 4, "align_depth": 1}),
    "ddt": ("ddt_forward", {}),
    "improved-dit": ("ddt_improved_dit_forward", {}),
    "sd3": ("sd35_mmditx_dual", {}),
    "repa-mmdit": ("repa_mmdit", {}),
}


@pytest.mark.parametrize("source", FAMILIES)
def test_published_weights_of_every_family(reference, source):
    name, shape = FAMILIES[source]
    case = reference(name)
    maker = case.meta.get("constructor", {})
    if source in ("dit", "repa"):
        shape = {**shape, "heads": maker["num_heads"]}
    if source == "ddt":
        shape = {"encoder_blocks": maker["num_encoder_blocks"]}
    if source == "repa-mmdit":
        shape = {"align_depth": maker.get("encoder_depth", 1)}
    loaded = of_published(load_published(case.state, source, **shape))
    settings = loaded.settings
    n, (height, width) = 24, settings.size
    x = torch.randn(2 * n, settings.channels, height, width, generator=torch.Generator().manual_seed(0))
    images = torch.randint(0, 255, (2 * n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(2 * n) % 3
    cond = example_condition(settings, 2 * n)
    parts = (Pictures(images[i::2], labels[i::2], x[i::2], cond.index(slice(i, None, 2))) for i in (0, 1))
    subject = Subject(source, loaded, Asked(n=n, train=n))
    subject.__dict__ |= dict(zip(("test", "train"), parts, strict=True))
    subject.__dict__["teachers"] = {"planted": PlantedTeacher()}
    assert layers.ANALYSIS.fits(subject) == ""
    r = measured(subject, t=0.4, k=4)
    assert [look.block for look in r.looks] == list(range(1, settings.depth + 1))
    assert all(0 <= look.accuracy <= 1 and -1 <= look.alike["planted"].cka <= 1 for look in r.looks)
    if source == "ddt":
        assert r.encoder_blocks == shape["encoder_blocks"] < r.depth
    assert json.dumps(r.model_dump(mode="json"))


def test_a_network_without_null_label_is_refused(planted):
    subject = planted()
    assert layers.ANALYSIS.fits(subject) == ""
    subject.loaded.settings = subject.loaded.settings.model_copy(update={"null_label": False})
    assert "no null label" in layers.ANALYSIS.fits(subject)
