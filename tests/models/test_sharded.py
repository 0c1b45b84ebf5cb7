"""FSDP2, sharded by block, on the CPU: parameters are used inside their own block's forward, so it works.

Run as a script (rank, world, file), this is one process of a group; the test below starts two.
"""

import os
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ditkit.diffusion.sharing import SharedEncoder, Sharing
from ditkit.models import (
    Condition,
    DDTSettings,
    DiTSettings,
    JointDiTSettings,
    MMDiTSettings,
    SelfCondition,
    UViTSettings,
    build_model,
    reads_text,
)

DDT_BASE = {"encoder_blocks": 2, "decoder_blocks": 2, "width": 32, "heads": 4, "size": (8, 8), "num_classes": 5}
TEXT_BASE = {"depth": 3, "width": 32, "heads": 4, "size": (8, 8), "channels": 4, "text_width": 12, "pooled_width": 6}
CASES = {
    "dit": DiTSettings(depth=3, width=32, heads=4, size=(8, 8), num_classes=5),
    "ddt": DDTSettings(**DDT_BASE),
    "ddt_checkpointing": DDTSettings(**DDT_BASE, checkpointing=True),
    "improved_dit": DDTSettings(**{**DDT_BASE, "encoder_blocks": 0, "decoder_blocks": 3}),
    "mmdit": MMDiTSettings(depth=3, width=32, heads=4, size=(8, 8), channels=4, text_width=12, pooled_width=6,
                           qk_norm="rms", dual=(1,)),
    "joint_dit": JointDiTSettings(**TEXT_BASE, patch=2),
    "uvit": UViTSettings(**TEXT_BASE, patch=1, levels=(8,), level_blocks=1),
}  # fmt: skip
ROWS = 4


def batch(settings):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, settings.channels, *settings.size, generator=generator)
    t = torch.rand(ROWS, generator=generator)
    if reads_text(settings):
        text, pooled = (torch.randn(*shape, generator=generator) for shape in ((ROWS, 5, 12), (ROWS, 6)))
        return x, t, Condition(text=text, pooled=pooled)
    return x, t, Condition(label=torch.arange(ROWS))


def pair(settings, mesh, **policy):
    """The same weights, none of them zero: whole, and sharded by block."""
    generator = torch.Generator().manual_seed(0)
    whole = build_model(settings, generator=generator)
    with torch.no_grad():
        for p in whole.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    sharded = deepcopy(whole)
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh, **policy)
    fully_shard(sharded, mesh=mesh)
    return whole, sharded


def loss(out):
    return out.sample.square().mean() + out.hidden[2].mean()


def check_gradients(settings, mesh, rank=0, world=1):
    """Each rank computes its rows; the averaged gradients are those of the whole batch in one process."""
    warnings.filterwarnings("ignore", message=".*returned a view tensor")  # nothing here is changed in place
    whole, sharded = pair(settings, mesh)
    x, t, cond = batch(settings)
    rows = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    want = whole(x, t, cond, capture=(2,))
    loss(want).backward()
    got = sharded(x[rows], t[rows], cond.index(rows), capture=(2,))
    loss(got).backward()
    torch.testing.assert_close(got.sample, want.sample[rows], rtol=1e-4, atol=1e-5)
    for (name, p), q in zip(sharded.named_parameters(), whole.parameters(), strict=True):
        assert isinstance(p, DTensor) and p.to_local().numel() <= -(-q.shape[0] // world) * q[0].numel()
        torch.testing.assert_close(p.grad.full_tensor(), q.grad, rtol=1e-4, atol=1e-6, msg=name)


def check_sharing(settings, mesh, rank=0, world=1):
    """encode and decode of a sharded model, by themselves and under the wrapper that samples with them."""
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    whole, sharded = pair(settings, mesh)
    for method in ("encode", "decode"):
        register_fsdp_forward_method(sharded, method)
    x, t, cond = batch(settings)
    rows = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    x, t, cond = x[rows], t[rows], cond.index(rows)
    with torch.no_grad():
        kept = SelfCondition(sharded.encode(x, t, cond))
        torch.testing.assert_close(kept.s, whole.encode(x, t, cond), rtol=1e-4, atol=1e-5)
        first = sharded.decode(x, kept)
        assert len(kept.modulations) == settings.decoder_blocks + 1
        assert torch.equal(first, sharded.decode(x, kept)) and torch.equal(first, sharded.decode(x, kept.s))
        assert torch.equal(first, sharded(x, t, cond).sample)
        sharing = Sharing(rule="every:2", evaluations=4, encode=(0, 2))
        one, other = SharedEncoder(sharded, sharing), SharedEncoder(whole, sharing)
        for step in range(4):
            call = (x + step, t / (1 + step), cond)
            torch.testing.assert_close(one(*call).sample, other(*call).sample, rtol=1e-4, atol=1e-5)
        assert one.encoded == 2


@pytest.fixture
def mesh():
    """A group of one process: nothing is split, but the parameters are DTensors outside their block's forward."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_a_sharded_model(name, mesh):
    check_gradients(CASES[name], mesh)


def test_sharing_on_a_sharded_model(mesh):
    check_sharing(CASES["ddt"], mesh)


def test_the_halves_must_be_registered(mesh):
    """What a user meets who forgets it, and the proof that the tests above would see a parameter used outside."""
    _, sharded = pair(CASES["ddt"], mesh)
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        sharded.encode(*batch(CASES["ddt"]))


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_policy_on_blocks_keeps_time(name, mesh):
    """DESIGN: policies on blocks only; there they cast inputs, so the time must be embedded outside."""
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    settings = CASES[name]
    whole, sharded = pair(settings, mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    seen = []
    for model in (whole, sharded):
        model.time.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    inside = []
    block = sharded.blocks[0]
    mlp = block.image.mlp if isinstance(settings, MMDiTSettings) else block.mlp
    mlp.register_forward_pre_hook(lambda _m, args: inside.append(args[0].dtype))
    want, got = (model(*batch(settings)).sample for model in (whole, sharded))
    assert seen[1].dtype == torch.float32 and torch.equal(*seen) and inside == [torch.bfloat16]
    assert 0 < (want - got).abs().mean() < 0.05 * want.abs().mean()


@pytest.mark.long
def test_two_processes(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    started = []
    for rank in range(2):
        command = [sys.executable, __file__, str(rank), "2", str(tmp_path / "group")]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=200)[1] for process in started]
    finally:  # the other one waits for ever for a rank that failed
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)


def main(rank: int, world: int, file: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    for settings in CASES.values():
        check_gradients(settings, mesh, rank, world)
    check_sharing(CASES["ddt"], mesh, rank, world)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
