"""A network that cannot be had: one line, quickly, naming every way on."""

from __future__ import annotations

import pickle
import sys
import time
from types import SimpleNamespace

import pytest

from ditkit.pretrained import PretrainedMissing, load_codec, load_teacher
from ditkit.pretrained.hub import fetch, is_local, offline
from ditkit.pretrained.missing import WAYS as WAYS_OF

WAYS = ("ditkit teacher", "--teacher RUN|none", "--codec pixels")


def check(error) -> str:
    text = str(error.value)
    assert "\n" not in text and all(way in text for way in WAYS)
    return text


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize(
    ("load", "what"), [(load_teacher, "dinov2-vit-b"), (load_codec, "ft-ema"), (load_teacher, "org/x")]
)
def test_offline_is_honoured_at_once(load, what, name, monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("the network was asked"))
    started = time.perf_counter()
    with pytest.raises(PretrainedMissing) as error:
        load(what)
    assert "HF_HUB_OFFLINE" in check(error)
    assert time.perf_counter() - started < 15  # imports included


@pytest.mark.parametrize("reason", ["unreachable", "unknown", "gated"])
def test_the_hub_is_asked_once_and_its_answer_is_said(reason, monkeypatch):
    """No patient retries behind a firewall; transformers is not let loose on a hub that did not answer."""
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("diffusers")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    asked = []

    reply = SimpleNamespace(headers={}, status_code=404, request=None)

    kinds = {"unknown": hub.errors.RepositoryNotFoundError, "gated": hub.errors.GatedRepoError}

    def model_info(self, repo_id, *, timeout):
        asked.append((repo_id, timeout))
        if reason == "unreachable":
            raise ConnectionError("no route to host\nand more lines")
        raise kinds[reason]("no", response=reply)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    with pytest.raises(PretrainedMissing) as error:
        load_codec("nobody/nothing-of-this-name")
    text = check(error)
    assert {"unreachable": "no route to host", "unknown": "no such model", "gated": "licence"}[reason] in text
    assert asked == [("nobody/nothing-of-this-name", 5.0)]


@pytest.mark.parametrize("load", [load_teacher, load_codec])
@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "nofolder", "~/nope", "runs/x", "mine/x"])
def test_paths_never_reach_the_hub(load, source, monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)  # the path is looked at before any extra is asked for
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("the network was asked"))
    with pytest.raises(PretrainedMissing) as error:
        load(source)
    assert source in check(error) and "no folder of that name" in str(error.value)


def test_ways_on_fit_what_is_missing():
    said = {kind: str(PretrainedMissing(f"{kind} 'x'", "gone")) for kind in WAYS_OF}
    codec, teacher, extractor, text = (said[kind] for kind in ("codec", "teacher", "extractor", "text"))
    assert codec.index("--codec FOLDER") < codec.index("--codec pixels") < codec.index("ditkit teacher")
    assert teacher.index("ditkit teacher") < teacher.index("--teacher RUN|none") < teacher.index("--codec pixels")
    assert "--extractor FOLDER" in extractor and "--codec" not in extractor
    assert "text.t5" in text and "--text toy" in text and "--codec" not in text


@pytest.mark.parametrize(
    ("package", "load", "what"), [("transformers", load_teacher, "clip"), ("diffusers", load_codec, "ft-mse")]
)
def test_a_missing_extra_is_named(package, load, what, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PretrainedMissing) as error:
        load("clip:openai/clip-vit-large-patch14" if what == "clip" else what)
    assert "pip install 'ditkit[hf]'" in check(error) and "no folder '" in str(error.value)


def test_what_counts_as_local(tmp_path, monkeypatch):
    assert (
        not is_local("org/name") and is_local("./org") and is_local("name") and is_local("a/b/c") and is_local("/a/b")
    )
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_local("org/name")  # a folder of that name wins
    assert is_local("org/other")  # and beside one, a slip of the pen is likelier than a hub id
    (tmp_path / "facebook").mkdir()
    assert not is_local("facebook/dinov2-base")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    assert not offline()


def test_a_cached_model_of_the_wrong_kind_says_so_even_offline(monkeypatch):
    """Not everything that fails is a missing file: the reason of the loader wins."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def load(place, local_files_only):
        raise ValueError("it is a clip model, not dinov2")

    with pytest.raises(PretrainedMissing) as error:
        fetch(load, "org/name", "teacher x")
    assert "it is a clip model" in check(error) and "cache" not in str(error.value)


def test_a_cached_model_needs_no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("the network was asked"))
    assert fetch(lambda place, local_files_only: (place, local_files_only), "org/name", "x") == ("org/name", True)


def test_the_error_survives_a_worker_process():
    error = PretrainedMissing("codec 'x'", "gone")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
