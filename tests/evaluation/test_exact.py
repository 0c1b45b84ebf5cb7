"""`exact`: the same bytes for any chunk and any images that are missing, from a network that rounds by batch size."""

from __future__ import annotations

import pytest
import torch

from ditkit.diffusion import CFG, Linear, SamplerSettings
from ditkit.evaluation import ToSample, make_request, open_generated
from ditkit.evaluation.folder import FolderError
from ditkit.evaluation.generate import condition_of, generate, sample_latents
from ditkit.evaluation.request import Request
from ditkit.models import DiT, DiTSettings
from ditkit.pretrained.toy import ToyCodec, ToyTextEncoder

CHUNKS = (3, 5, 8, 64)
SAMPLERS = {
    "ode": SamplerSettings(solver="heun", steps=3, guidance=CFG(scale=2.5, low=0.1, high=0.8)),
    "sde": SamplerSettings(solver="euler_maruyama", steps=4, last=0.04, guidance=CFG(scale=2.5)),
    "adaptive": SamplerSettings(solver="dopri5", steps=2, options={"rtol": 0.1, "atol": 0.1}, guidance=CFG(scale=1.5)),
}


@pytest.fixture(scope="module")
def source() -> ToSample:
    """Wide enough that matrix products are cut differently for other batch sizes."""
    settings = DiTSettings(depth=2, width=192, heads=3, patch=1, channels=12, size=(4, 4), num_classes=5)
    generator = torch.Generator().manual_seed(0)
    model = DiT(settings, generator=generator)
    for p in model.parameters():
        p.data.add_(0.05 * torch.randn(p.shape, generator=generator))
    return ToSample(model, Linear(), "velocity", ToyCodec(3))


def ask(chunk: int, exact: bool, n: int = 21, **changes):
    return make_request(n, 5, seed=4, chunk=chunk).model_copy(update={"exact": exact, "rows": 4, "decode": 3} | changes)


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_chunk_gives_the_same_bytes(source, name):
    made = [generate(source, SAMPLERS[name], ask(chunk, exact=True)) for chunk in CHUNKS]
    assert all(torch.equal(m.images, made[0].images) and m.evaluations == made[0].evaluations for m in made)
    assert made[0].images.shape == (21, 3, 8, 8) and len({x.numpy().tobytes() for x in made[0].images}) == 21


@pytest.mark.parametrize("name", ["ode", "sde"])
def test_without_it_chunks_differ_in_rounding_by_one_level_at_most(source, name):
    requests = [ask(chunk, exact=False, n=8) for chunk in (1, 8)]
    latents = [torch.cat([sample_latents(source, SAMPLERS[name], r, c)[0] for c in range(r.chunks)]) for r in requests]
    assert not torch.equal(*latents), "so that the other tests of this file can fail"
    images = [generate(source, SAMPLERS[name], r).images.int() for r in requests]
    assert (images[0] - images[1]).abs().max() <= 1
    exact = generate(source, SAMPLERS[name], ask(8, exact=True, n=8)).images.int()
    assert (exact - images[0]).abs().max() <= 1


def test_every_call_of_the_network_and_of_the_codec_has_its_full_rows(source, monkeypatch):
    rows: dict[str, set[int]] = {"network": set(), "codec": set()}
    source.model.register_forward_hook(lambda model, args, out: rows["network"].add(len(args[0])))
    decode = ToyCodec.decode
    monkeypatch.setattr(ToyCodec, "decode", lambda self, z: rows["codec"].add(len(z)) or decode(self, z))
    request = ask(5, exact=True, n=6, decode=2)
    sampler = SAMPLERS["ode"].model_copy(update={"guidance": None})
    images = generate(source, sampler, request).images
    assert rows == {"network": {4}, "codec": {2}} and len(images) == 6
    assert request.filled(1) == [4, 5, 5, 5] and [list(request.indices(c)) for c in (0, 1)] == [[0, 1, 2, 3], [4, 5]]
    assert (request.chunks, ask(5, exact=False, n=6).chunks) == (2, 2)


def test_a_folder_goes_on_with_another_chunk(source, tmp_path):
    sampler = SAMPLERS["sde"]
    whole = generate(source, sampler, ask(64, exact=True), folder=tmp_path / "whole").images[:]
    generate(source, sampler, ask(3, exact=True), folder=tmp_path / "part")
    for i in (2, 9, 20):
        (tmp_path / "part" / f"{i:06d}.png").unlink()
    assert generate(source, sampler, ask(5, exact=True), folder=tmp_path / "part").made == 3
    assert torch.equal(open_generated(tmp_path / "part").images[:], whole)
    files = [sorted((p.name, p.read_bytes()) for p in (tmp_path / f).iterdir()) for f in ("whole", "part")]
    assert files[0] == files[1], "request.json and the evaluations told in the PNG files too"
    with pytest.raises(FolderError, match=r"request\.rows: 4 there, 8 now"):
        generate(source, sampler, ask(5, exact=True, rows=8), folder=tmp_path / "part")
    with pytest.raises(FolderError, match=r"request\.exact: True there, False now"):
        generate(source, sampler, ask(5, exact=False), folder=tmp_path / "part")


def test_a_prompt_is_read_alone_whatever_its_neighbours():
    """An encoder's rounding may depend on its batch: it is never asked for two prompts at once."""

    class Rounding(ToyTextEncoder):
        def __call__(self, prompts):
            found = super().__call__(prompts)
            found.text.add_(1e-3 * len(prompts))
            return found

    prompts = ("a cat", "a dog", "a cat", "a fox")
    request = Request(n=4, prompts=prompts, mode="prompts")
    together = condition_of(request, range(4), Rounding(), torch.device("cpu"))
    alone = [condition_of(request, [i], Rounding(), torch.device("cpu")) for i in range(4)]
    assert torch.equal(together.text, torch.cat([c.text for c in alone]))
