"""Published layouts of Inception's weights: each gives the same network, and what is not one is refused in one line."""

from __future__ import annotations

import importlib.util
import struct
import tarfile
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ditkit.pretrained import PretrainedMissing
from ditkit.pretrained.extractors import load_inception
from ditkit.pretrained.inception import Network, Unit
from ditkit.pretrained.inception_file import convert_inception, joined_name, torchvision_name
from ditkit.pretrained.inception_graph import read_graph

REFERENCE = Path(__file__).parents[1] / "reference"
_spec = importlib.util.spec_from_file_location("load_fixture", REFERENCE / "load_fixture.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

GRAPH_ROLES = {
    "conv.weight": "conv2d_params",
    "bn.weight": "batchnorm/gamma",
    "bn.bias": "batchnorm/beta",
    "bn.running_mean": "batchnorm/moving_mean",
    "bn.running_var": "batchnorm/moving_variance",
}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """The recording's weights in torch-fidelity's layout; not to be changed."""
    _, arrays, _, _ = _module.load_fixture(str(REFERENCE), "inception_torch_fidelity")
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


@pytest.fixture(scope="module")
def units() -> list[str]:
    with torch.device("meta"):
        return [name for name, module in Network().named_modules() if isinstance(module, Unit)]


@pytest.fixture(scope="module")
def ours(state):
    return convert_inception(state)


@pytest.fixture(scope="module")
def graph_state(state, units):
    """The same weights under the graph's names, in TensorFlow's order of axes."""
    found = {"softmax/weights": state["fc.weight"].T, "softmax/biases": state["fc.bias"]}
    for unit in units:
        for theirs, role in GRAPH_ROLES.items():
            value = state[f"{torchvision_name(unit)}.{theirs}"]
            value = value.permute(2, 3, 1, 0) if value.ndim == 4 else value
            found[f"{unit.replace('.', '/')}/{role}"] = value.contiguous()
    return found


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("graph", "torchvision"),
    [
        ("conv_4", "Conv2d_4a_3x3"),
        ("mixed.tower.conv_1", "Mixed_5b.branch5x5_2"),
        ("mixed_2.tower_1.conv_2", "Mixed_5d.branch3x3dbl_3"),
        ("mixed_3.conv", "Mixed_6a.branch3x3"),
        ("mixed_3.tower.conv", "Mixed_6a.branch3x3dbl_1"),
        ("mixed_6.conv", "Mixed_6d.branch1x1"),
        ("mixed_7.tower_1.conv_4", "Mixed_6e.branch7x7dbl_5"),
        ("mixed_4.tower_2.conv", "Mixed_6b.branch_pool"),
        ("mixed_8.tower.conv_1", "Mixed_7a.branch3x3_2"),
        ("mixed_8.tower_1.conv_3", "Mixed_7a.branch7x7x3_4"),
        ("mixed_9.tower.mixed.conv", "Mixed_7b.branch3x3_2a"),
        ("mixed_10.tower_1.mixed.conv_1", "Mixed_7c.branch3x3dbl_3b"),
    ],
)
def test_names_of_the_graph_and_of_torchvision(graph, torchvision, units):
    assert graph in units and torchvision_name(graph) == torchvision


def test_every_unit_has_its_name_in_the_published_file(units, state):
    assert len(units) == 94
    kernels = {key for key in state if key.endswith(".conv.weight")}
    assert {f"{torchvision_name(unit)}.conv.weight" for unit in units} == kernels


# ------------------------------------------------------------------------------------------- the graph's file


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number % 128 + 128])
        number //= 128
    return out + bytes([number])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def constant(name: str, value: torch.Tensor) -> bytes:
    """One node of a GraphDef."""
    shape = b"".join(field(2, field(1, size)) for size in value.shape)
    tensor = field(1, 1) + field(2, shape) + field(4, value.numpy().tobytes())
    entry = field(1, b"value") + field(2, field(8, tensor))
    return field(1, field(1, name.encode()) + field(2, b"Const") + field(5, entry))


def normalisation(scales: bool) -> bytes:
    entry = field(1, b"scale_after_normalization") + field(2, field(5, int(scales)))
    return field(1, field(1, b"n") + field(2, b"BatchNormWithGlobalNormalization") + field(5, entry))


@pytest.fixture(scope="module")
def graph(graph_state) -> bytes:
    size = constant("ResizeBilinear/size", torch.ones(2))
    return size + b"".join(constant(name, value) for name, value in graph_state.items())


def test_a_frozen_graph_and_its_archive_load(graph, ours, tmp_path):
    (tmp_path / "classify_image_graph_def.pb").write_bytes(graph)
    with tarfile.open(tmp_path / "inception-2015-12-05.tgz", "w:gz", compresslevel=0) as archive:
        archive.add(tmp_path / "classify_image_graph_def.pb", "./classify_image_graph_def.pb")
    for name in ("classify_image_graph_def.pb", "inception-2015-12-05.tgz"):
        assert same(load_inception(tmp_path / name).network.state_dict(), ours)


def test_gamma_is_left_out_only_where_the_graph_does_not_scale():
    def read(*flags: bool) -> set[str]:
        nodes = constant("a/gamma", torch.full((2,), 3.0)) + constant("a/beta", torch.ones(2))
        return set(read_graph(nodes + b"".join(map(normalisation, flags))))

    assert read(False, False) == {"a/beta"}
    assert read() == read(True, True) == read(False, True) == {"a/gamma", "a/beta"}


def test_a_graph_that_tensorflow_wrote_is_read():
    _, _, inputs, outputs = _module.load_fixture(str(REFERENCE), "inception_tensorflow")
    found = read_graph(inputs["graph"].tobytes())
    wanted = {key.removeprefix("graph."): value for key, value in outputs.items() if key.startswith("graph.")}
    wanted |= {"conv/batchnorm/gamma": torch.ones(300).numpy(), "filled": torch.full((2, 3), 1.5).numpy()}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].numpy().shape == value.shape and (found[name].numpy() == value).all()


def test_a_damaged_graph_is_refused():
    whole = constant("a", torch.arange(6.0).view(2, 3))
    assert torch.equal(read_graph(whole)["a"], torch.arange(6.0).view(2, 3))
    for cut in (1, 2, 10, len(whole) - 1):
        with pytest.raises(ValueError, match="ends in the middle"):
            read_graph(whole[:cut])
    with pytest.raises(ValueError, match="no wire type 3"):
        read_graph(varint(1 << 3 | 3))
    short = field(8, field(1, 1) + field(2, field(2, field(1, 3))) + field(4, struct.pack("<f", 1)))
    entry = field(5, field(1, b"value") + field(2, short))
    with pytest.raises(ValueError, match=r"constant a has 1 values where its shape \[3\] asks for 3"):
        read_graph(field(1, field(1, b"a") + field(2, b"Const") + entry))


# ------------------------------------------------------------------------------------------- files of torch


def test_other_names_for_the_same_tensors(state, graph_state, ours):
    assert same(convert_inception(graph_state), ours)
    dotted = {f"layers.{key.replace('/', '.')}": value for key, value in graph_state.items()}
    assert same(convert_inception(dotted), ours)
    bare = {key: value for key, value in state.items() if not key.endswith(("bn.weight", "tracked", "fc.bias"))}
    assert len(bare) == 94 * 4 + 1 and same(convert_inception(bare), ours)


def test_the_names_that_are_reported_of_openais_port(graph_state, ours, units):
    """Parts joined by "_" in the last two blocks, a head named output: the same tensors, no others."""
    assert joined_name("mixed_9.tower_1.mixed.conv_1") == "mixed_9.tower_1_mixed_conv_1"
    assert joined_name("mixed_8.tower_1.conv") == "mixed_8.tower_1.conv" and joined_name("conv_4") == "conv_4"
    assert len({joined_name(unit) for unit in units}) == len(units) == 94
    port = {"output.weight": graph_state["softmax/weights"].T, "output.bias": graph_state["softmax/biases"]}
    for key, value in graph_state.items():
        unit, _, role = key.rpartition("/batchnorm/")
        if not unit:
            unit, _, role = key.rpartition("/")
        if unit != "softmax":
            port[f"layers.{joined_name(unit.replace('/', '.'))}.{role.replace('conv2d_params', 'weight')}"] = value
    assert "layers.mixed_10.tower_conv.weight" in port and len(port) == len(graph_state)
    assert same(convert_inception(port), ours)
    for change, said in (
        ({"layers.mixed_8.tower_conv.weight": torch.ones(1)}, "1 unknown: layers.mixed_8.tower_conv.weight"),
        ({"layers.mixed_9.tower_1_mixed.beta": torch.ones(1)}, "1 unknown: layers.mixed_9.tower_1_mixed.beta"),
        ({"layers.mixed_9.tower.conv.beta": torch.ones(384)}, "1 twice there: layers.mixed_9.tower"),
        ({"layers.mixed_9.tower_conv.beta": torch.ones(320)}, "1 of a wrong shape: mixed_9/tower/conv/beta (320,)"),
        ({"output.weight": torch.ones(1000, 2048)}, "1 of a wrong shape: softmax/weights (1000, 2048)"),
    ):
        with pytest.raises(ValueError) as error:
            convert_inception(port | change)
        assert said in str(error.value)


def test_files_of_torch_and_safetensors_load(state, ours, tmp_path):
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "c.safetensors")
    for name in ("a.pth", "old.pt", "c.safetensors"):
        assert same(load_inception(str(tmp_path / name)).network.state_dict(), ours)


class Tree(torch.nn.Module):
    """Tensors under dotted names, and nothing to call."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            first, _, rest = key.partition(".")
            if rest:
                parts.setdefault(first, {})[rest] = value
            else:
                self.register_buffer(key, value)
        for name, inner in parts.items():
            self.add_module(name, Tree(inner))

    def forward(self) -> int:
        return 0


def test_a_program_of_torchscript_loads(graph_state, ours, tmp_path):
    tree = Tree({key.replace("/", "."): value for key, value in graph_state.items()})
    assert same(load_inception(tree).network.state_dict(), ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(tree).save(str(tmp_path / "inception-2015-12-05.pt"))
        assert same(load_inception(tmp_path / "inception-2015-12-05.pt").network.state_dict(), ours)


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head.weight": torch.ones(2)}, "1 unknown: head.weight"),
        ({"fc.bias": None, "Mixed_6d.branch1x1.bn.bias": None}, "1 missing: mixed_6/conv/beta"),
        ({"softmax/weights": torch.ones(2048, 1008)}, "1 twice there: softmax/weights"),
        ({"fc.weight": torch.ones(1000, 2048)}, "1 of a wrong shape: softmax/weights (1000, 2048) for (1008, 2048)"),
        ({"Conv2d_1a_3x3.conv.weight": torch.ones(32, 1, 3, 3)}, "conv/kernel (32, 1, 3, 3) for (32, 3, 3, 3)"),
        ({"Conv2d_1a_3x3.bn.weight": torch.full((32,), 2.0)}, "other than 1, where this network has none: conv/scale"),
    ],
)
def test_keys_and_shapes_are_all_accounted_for(change, said, state):
    changed = {key: value for key, value in {**state, **change}.items() if value is not None}
    with pytest.raises(ValueError) as error:
        convert_inception(changed)
    assert said in str(error.value)


def test_every_missing_key_of_an_empty_file_is_counted_in_one_line(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(PretrainedMissing) as error:
        load_inception(tmp_path / "a.safetensors")
    text = str(error.value)
    assert "a.safetensors is not the Inception of 2015-12-05: 1 unknown: x; 377 missing: conv/beta" in text
    assert "\n" not in text and "inception:SOURCE" in text


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"\n\x05ab", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x1f\x8b\x08\x00"]
)
def test_foreign_and_damaged_files_are_refused_in_one_line(content, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(PretrainedMissing) as error:
        load_inception(tmp_path / "weights.pth")
    assert "\n" not in str(error.value) and "weights.pth is" in str(error.value)
