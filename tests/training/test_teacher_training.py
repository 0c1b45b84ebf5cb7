"""Training a teacher on one's own images: the loss, the folder, bad images, and what it learns on digits."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ditkit.analysis.probe import draw_rows, gather, knn_accuracy, linear_probe, probe_report
from ditkit.data.digits import Digits
from ditkit.pretrained import Augment, SelfTaught, ViTSettings, load_teacher
from ditkit.protocols import BadImage, Item
from ditkit.training.teacher import TeacherTraining, nt_xent, train_teacher

SMALL = ViTSettings(channels=3, patch=4, grid=(2, 2), width=8, depth=1, heads=2)
QUICK = TeacherTraining(steps=3, batch=4, network=SMALL, projector_width=8, projector_out=4, warmup=0)


class Pictures:
    """Ten random colour pictures of 8 x 8; those named in `bad` cannot be read."""

    classes: tuple = ()
    channels, size, fingerprint = 3, (8, 8), "pictures"

    def __init__(self, count=10, bad=()):
        self.images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
        self.bad = bad

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.bad:
            raise BadImage(f"{index}.png", "truncated")
        return Item(self.images[index], -1, "", f"{index}.png")


def test_nt_xent_equals_loops():
    """SimCLR eq. 1: each of 2B views against all others, positives B apart."""
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    losses = []
    for i in range(6):
        similarity = [float(torch.cosine_similarity(vectors[i], v, dim=0)) / 0.2 for v in vectors]
        total = sum(math.exp(s) for j, s in enumerate(similarity) if j != i)
        losses.append(-math.log(math.exp(similarity[(i + 3) % 6]) / total))
    loss, _ = nt_xent(vectors, 0.2)
    assert loss.item() == pytest.approx(sum(losses) / 6, rel=1e-5)
    same = torch.eye(4).repeat(2, 1)
    assert nt_xent(same, 0.1)[1] == 1.0 and nt_xent(same, 0.1)[0] < 0.01


def test_the_folder_is_whole_and_the_run_repeatable(tmp_path):
    seen = []
    teacher = train_teacher(
        Pictures(), QUICK, tmp_path / "a", seed=1, progress=lambda step, row: seen.append((step, row))
    )
    assert [step for step, _ in seen] == [1, 2, 3] and {"loss", "accuracy", "images_per_s"} <= seen[0][1].keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["model.safetensors", "teacher.json"]
    assert load_teacher(str(tmp_path / "a")).id == teacher.id
    assert train_teacher(Pictures(), QUICK, None, seed=1).id == teacher.id
    assert train_teacher(Pictures(), QUICK, None, seed=2).id != teacher.id
    facts = json.loads((tmp_path / "a" / "teacher.json").read_text())["facts"]
    assert facts["steps"] == 3 and facts["images"] == 10 and facts["data"] == "pictures" and facts["rejects"] == []
    with pytest.raises(FileExistsError, match="not an empty folder"):
        train_teacher(Pictures(), QUICK, tmp_path / "a")


def test_training_moves_away_from_its_random_initialisation():
    """SelfTaught.untrained with the run's seed and shape is where training started."""
    one_step = QUICK.model_copy(update={"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0})
    teacher = train_teacher(Pictures(), one_step, None, seed=5)
    start = SelfTaught.untrained(teacher.settings, seed=5)
    for key, value in start.network.state_dict().items():
        torch.testing.assert_close(teacher.network.state_dict()[key], value, atol=1e-8, rtol=0)
    moved = train_teacher(Pictures(), QUICK, None, seed=5)
    assert (moved.network.patch.weight - start.network.patch.weight).abs().max() > 1e-3


def test_statistics_of_the_images_are_stored():
    teacher = train_teacher(Pictures(), QUICK, None)
    pixels = Pictures().images.double() / 255
    assert teacher.settings.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-5)
    assert teacher.settings.std == pytest.approx(pixels.std((0, 2, 3)).tolist(), abs=1e-5)


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupt(step, _):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_teacher(Pictures(), QUICK, tmp_path / "a", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_bad_images_are_listed_and_the_rest_is_used(tmp_path):
    with pytest.warns(UserWarning, match="2 images could not be read"):
        teacher = train_teacher(Pictures(bad=(0, 7)), QUICK, tmp_path / "a")
    assert sorted(teacher.facts["rejects"]) == [["0.png", "truncated"], ["7.png", "truncated"]]
    assert teacher.facts["images"] == 8
    with pytest.raises(ValueError, match="at least 2"):
        train_teacher(Pictures(3, bad=(0, 2)), QUICK, None)
    with pytest.raises(ValueError, match="at least 2"):
        train_teacher(Pictures(1), QUICK, None)


def test_fewer_images_than_a_batch():
    assert train_teacher(Pictures(3), QUICK.model_copy(update={"batch": 64}), None).facts["images"] == 3


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"network\.channels is 1, the images have 3"):
        train_teacher(Pictures(), QUICK.model_copy(update={"network": ViTSettings(channels=1)}), None)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train_teacher(Pictures(), QUICK.model_copy(update={"learning_rate": 1e30, "steps": 30}), None)
    settings = TeacherTraining(network=SMALL, augment=Augment(flip=0.5))
    assert TeacherTraining.model_validate_json(settings.model_dump_json()) == settings


def test_a_short_training_already_beats_random_weights_with_few_labels():
    """50 steps, a few seconds: no claim about quality, only that learning goes the right way."""
    train, test = Digits("train"), Digits("test")
    teacher = train_teacher(train, TeacherTraining(steps=50), None)
    start = SelfTaught.untrained(teacher.settings, teacher.facts["seed"])
    embed = {"teacher": lambda x: teacher(x).pooled, "start": lambda x: start(x).pooled}
    labels, features = gather(train, range(0, len(train), 4), embed)
    test_labels, test_features = gather(test, range(len(test)), embed)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        rows = draw_rows(labels, 10, 1.0, generator)
        for score in (knn_accuracy, linear_probe):
            accuracy = {n: score(f[rows], labels[rows], test_features[n], test_labels) for n, f in features.items()}
            assert accuracy["teacher"] > accuracy["start"] + 0.02, accuracy


@pytest.mark.long
def test_the_teacher_beats_its_random_initialisation_on_held_out_digits():
    """Issue: by 3 standard errors over 5 label draws, k-NN and linear, all labels and ten a class; pixels beside it."""
    train, test = Digits("train"), Digits("test")
    teacher = train_teacher(train, TeacherTraining(), None)
    start = SelfTaught.untrained(teacher.settings, teacher.facts["seed"])
    report = probe_report(teacher, start, train, test, draws=5)
    for name in ("knn", "linear", "knn_10", "linear_10"):
        assert report["gains"][name]["standard_errors"] >= 3, (name, report["gains"][name])
        assert set(report["scores"][name]) == {"teacher", "random_init", "pixels"}
    assert report["scores"]["knn"]["teacher"]["mean"] > 0.96
    for name in ("knn_10", "linear_10"):  # with few labels it also beats pixels, which are strong on digits
        assert report["gains_over_pixels"][name]["mean"] > 0


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    """Trains there, loads anywhere, gives the same features to rounding."""
    teacher = train_teacher(Pictures(), QUICK, tmp_path / "a", device="cuda")
    images = Pictures().images
    assert teacher(images).tokens.is_cuda
    torch.testing.assert_close(
        load_teacher(str(tmp_path / "a"))(images).tokens, teacher(images).tokens.cpu(), atol=1e-3, rtol=1e-3
    )
