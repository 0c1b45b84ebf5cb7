"""Several processes that fill one folder over gloo: the files of one, exact counts, deaths, and who speaks."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ditkit.diffusion import CFG, Linear, SamplerSettings
from ditkit.evaluation import ToSample, make_request
from ditkit.evaluation.generate import generate
from ditkit.evaluation.images import read_png
from ditkit.models import DiT, DiTSettings
from ditkit.pretrained.codec import PixelCodec
from ditkit.ranks import ALONE, RENDEZVOUS, Ranks, RanksError, Stopped, find_ranks, together

ROOT = Path(__file__).parents[1]
SAMPLER = SamplerSettings(solver="euler_maruyama", steps=3, last=0.04, guidance=CFG(scale=2.0))


def source(seed: int = 1) -> ToSample:
    settings = DiTSettings(depth=1, width=32, heads=2, patch=2, channels=1, size=(4, 4), num_classes=3)
    generator = torch.Generator().manual_seed(seed)
    model = DiT(settings, generator=generator)
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn(p.shape, generator=generator))
    return ToSample(model, Linear(), "velocity", PixelCodec(1))


def ask(n: int = 50, **changes):
    return make_request(n, 3, seed=2, chunk=4).model_copy(update=changes)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def as_rank(rank: int, world: int, folder: Path, job: str) -> None:
    """What one process does; it tells its end in RANK.json beside the folder, as the command line would."""
    os.environ[RENDEZVOUS] = folder.with_name("meeting").as_uri()
    told, seen = {"code": 0, "says": ""}, []
    request = ask(4000 if job == "endless" else 50, exact=job == "exact")
    model = source(3 if job == "other weights" and rank == 1 else 1)
    if job == "breaks" and rank == 1:
        model.model.register_forward_hook(lambda *_: 1 / 0)
    threads: set[int] = set()
    model.model.register_forward_hook(lambda *_: threads.add(torch.get_num_threads()))
    try:
        with together(Ranks(rank, world, rank)) as ranks:
            made = generate(
                model, SAMPLER, request, folder=folder, ranks=ranks, progress=lambda *at: seen.append(at)
            )  # fmt: skip
            told |= {"made": made.made, "threads": sorted(threads), "after": torch.get_num_threads()}
    except (Exception, KeyboardInterrupt) as error:
        told |= {"says": f"{type(error).__name__}: {error}", "code": getattr(error, "exit_code", 2)}
    except SystemExit as end:
        told["code"] = end.code
    folder.with_name(f"{rank}.json").write_text(json.dumps(told | {"progress": seen[-1:]}))


def run(world: int, folder: Path, job: str = "", kill: int | None = None) -> list[dict]:
    """What each process told, {} of a killed one."""
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=as_rank, args=(r, world, folder, job)) for r in range(world)]
    for process in running:
        process.start()
    deadline = time.monotonic() + 60
    if kill is not None:
        while len(list(folder.glob("0*.png"))) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(running[kill].pid, signal.SIGKILL)
        running[kill].join()
        time.sleep(0.3)
        for process in running:  # as torchrun does
            if process.is_alive():
                process.terminate()
    for process in running:
        process.join(max(0.1, deadline - time.monotonic()))
        assert process.exitcode is not None, "hangs"
    found = [folder.with_name(f"{r}.json") for r in range(world)]
    folder.with_name("meeting").unlink(missing_ok=True)
    return [json.loads(f.read_text()) if f.exists() else {} for f in found]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("one") / "out"
    generate(source(), SAMPLER, ask(), folder=folder)
    return files(folder)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_processes_writes_the_same_files(world, one, tmp_path):
    told = run(world, tmp_path / "out")
    assert files(tmp_path / "out") == one and len(one) == 52
    assert [t["made"] for t in told] == [50] * world and {t["code"] for t in told} == {0}
    assert told[0]["progress"] == [[50, 50]] and not any(t["progress"] for t in told[1:]), "the first speaks for all"


def run_apart(world: int, folder: Path, job: str) -> list[dict]:
    """As `run`, in fresh processes: a forked one must not change its threads after its parent has used several."""
    words = [sys.executable, __file__]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    running = [
        subprocess.Popen([*words, str(r), str(world), str(folder), job], env=os.environ | {"PYTHONPATH": path})
        for r in range(world)
    ]
    try:
        assert [process.wait(100) for process in running] == [0] * world
    finally:
        for process in running:
            process.kill()
    folder.with_name("meeting").unlink(missing_ok=True)
    return [json.loads(folder.with_name(f"{r}.json").read_text()) for r in range(world)]


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_folder_keeps_the_number_of_threads_that_began_it(world, one, tmp_path):
    """Networks round by the number of threads at some batch sizes, so whoever goes on takes the folder's."""
    here = torch.get_num_threads()
    assert json.loads(one["request.json"])["threads"] == here
    generate(source(), SAMPLER, ask(), folder=tmp_path / "out")
    place = tmp_path / "out" / "request.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"threads": here + 1}))
    (tmp_path / "out" / "000003.png").unlink()
    (tmp_path / "out" / "000007.png").unlink()
    told = run_apart(world, tmp_path / "out", "threads")
    assert [t["threads"] for t in told] == [[here + 1]] * world and {t["after"] for t in told} == {here}
    assert json.loads(place.read_text())["threads"] == here + 1


def test_exact_and_several_processes(tmp_path):
    run(3, tmp_path / "out", "exact")
    generate(source(), SAMPLER, ask(exact=True, chunk=9), folder=tmp_path / "one")
    assert files(tmp_path / "out") == files(tmp_path / "one")


def test_what_one_process_began_three_complete(one, tmp_path):
    generate(source(), SAMPLER, ask(), folder=tmp_path / "out")
    gone = (0, 3, 17, 18, 19, 44, 49)
    for i in gone:
        (tmp_path / "out" / f"{i:06d}.png").unlink()
    (tmp_path / "out" / "samples.npz").unlink()
    assert [t["made"] for t in run(3, tmp_path / "out")] == [len(gone)] * 3
    assert files(tmp_path / "out") == one


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_all_and_what_was_made_stays(victim, tmp_path):
    told = run(3, tmp_path / "out", "endless", kill=victim)
    there = sorted((tmp_path / "out").glob("0*.png"))
    assert 20 <= len(there) < 4000 and all(read_png(p)[0].shape == (1, 4, 4) for p in there)
    assert not (tmp_path / "out" / "samples.npz").exists()
    assert told[victim] == {} and all(t["code"] in (2, 143) for t in told if t)
    if victim:
        assert told[0]["says"].endswith(f"images are in {tmp_path / 'out'}; the same command makes the others")
    assert told[1]["says"] == "", "one line is enough"


def test_what_one_process_meets_is_its_own_to_say(tmp_path):
    told = run(2, tmp_path / "out", "breaks")
    assert told[1]["says"] == "RanksError: process 1 of 0 to 1: division by zero" and told[1]["code"] == 2
    assert told[0]["says"].startswith("RanksError: lost another of the 2 processes") and told[0]["code"] == 2


def test_processes_with_other_weights_are_refused_before_an_image_is_made(tmp_path):
    told = run(2, tmp_path / "out", "other weights")
    assert "RanksError: process 1 of 0 to 1: " in told[1]["says"] and "weights" in told[1]["says"]
    assert told[0] | {"progress": []} == {"code": 2, "says": "", "progress": []}
    assert sorted(files(tmp_path / "out")) == ["request.json"]


def test_what_all_refuse_is_said_once(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cat.png").touch()
    told = run(2, tmp_path / "out")
    assert "holds other things" in told[0]["says"] and told[1]["says"] == "" and told[1]["code"] == 2


def test_places_are_read_from_torchruns_variables():
    assert find_ranks({}) is ALONE and find_ranks({"RANK": "1"}) is ALONE
    assert find_ranks({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Ranks(5, 8, 1)
    assert find_ranks({"RANK": "0", "WORLD_SIZE": "1"}) == ALONE
    for rank, world in (("3", "3"), ("-1", "2"), ("a", "2")):
        with pytest.raises(ValueError, match=f"RANK={rank}, WORLD_SIZE={world}, LOCAL_RANK=None: no place"):
            find_ranks({"RANK": rank, "WORLD_SIZE": world})


def test_shares_are_disjoint_and_whole():
    parts = list(range(11))
    shares = [Ranks(r, 3, r).share(parts) for r in range(3)]
    assert shares[1] == [1, 4, 7, 10] and sorted(i for share in shares for i in share) == parts
    assert ALONE.share(parts) == parts and ALONE.tell("x") == "x"


def test_devices_in_turn(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    assert [Ranks(r, 3, r).device(torch.device("cuda")).index for r in range(3)] == [0, 1, 0] and chosen == [0, 1, 0]
    assert Ranks(1, 3, 1).device(torch.device("cuda:0")).index == 0, "a number is kept"
    assert Ranks(1, 3, 1).device(torch.device("cpu")) == torch.device("cpu")
    assert ALONE.device(torch.device("cuda")) == torch.device("cuda")


def test_memory_is_not_shared():
    with pytest.raises(ValueError, match="through a folder only"):
        generate(source(), SAMPLER, ask(), ranks=Ranks(0, 2, 0))
    assert issubclass(RanksError, RuntimeError) and Stopped.exit_code == 143


if __name__ == "__main__":
    as_rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
