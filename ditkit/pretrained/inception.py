"""The Inception network of 2015-12-05, in whose space FID, sFID, Inception Score, precision and recall are published.

Ours, in plain torch: the graph classify_image_graph_def (Szegedy et al., "Rethinking the Inception Architecture", with
the graph's own departures from the paper) on images that are resized and scaled as the graph does it. Modules carry the
graph's names. Weights come in three published layouts, see inception_file.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditkit.pretrained.identity import weight_hash
from ditkit.protocols import Features, Views

SIDE, WIDTH, CLASSES = 299, 2048, 1008
SPATIAL = 7  # channels of mixed_6/conv that sFID looks at
ON_CPU, ELSEWHERE = 32, 256  # images in the network at once, at most: about 15 MB each

Kernel = int | tuple[int, int]
Step = tuple[int, Kernel] | tuple[int, Kernel, int]  # output channels, kernel (rows, columns), stride


class Unit(nn.Conv2d):
    """Convolution and ReLU; batch normalisation (epsilon 1e-3, no scale) is folded into kernel and bias.

    padded: zeros around the input keep its size, TensorFlow's SAME; otherwise VALID.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Kernel = 1, stride: int = 1, *, padded: bool = True):
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        margin = (rows // 2, columns // 2) if padded and stride == 1 else (0, 0)
        super().__init__(inputs, outputs, (rows, columns), stride, margin)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(super().forward(x))


class Mixed(nn.ModuleDict):
    """Branches beside each other, their channels joined in the order of the names given."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.values()], dim=1)


def average_pool() -> nn.Module:
    """3x3, same size; the border averages over the pixels that are there, as TensorFlow's does."""
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def chain(inputs: int, *steps: Step, before: nn.Module | None = None, after: nn.Module | None = None) -> nn.Sequential:
    """Units conv, conv_1, conv_2 ... one after the other, between a pool and a fork where there are any."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if before is not None:
        parts["pool"] = before
    for i, step in enumerate(steps):
        parts["conv" if i == 0 else f"conv_{i}"] = Unit(inputs, *step)
        inputs = step[0]
    if after is not None:
        parts["mixed"] = after
    return nn.Sequential(parts)


def _coarse(inputs: int, pooled: int) -> Mixed:
    """35x35: 1x1, 5x5, two 3x3, pooled."""
    return Mixed(
        {
            "conv": Unit(inputs, 64),
            "tower": chain(inputs, (48, 1), (64, 5)),
            "tower_1": chain(inputs, (64, 1), (96, 3), (96, 3)),
            "tower_2": chain(inputs, (pooled, 1), before=average_pool()),
        }
    )


def _middle(width: int) -> Mixed:
    """17x17: 1x1, one and two pairs of 1x7 and 7x1, pooled."""
    wide, tall = (1, 7), (7, 1)
    return Mixed(
        {
            "conv": Unit(768, 192),
            "tower": chain(768, (width, 1), (width, wide), (192, tall)),
            "tower_1": chain(768, (width, 1), (width, tall), (width, wide), (width, tall), (192, wide)),
            "tower_2": chain(768, (192, 1), before=average_pool()),
        }
    )


def _fine(inputs: int, pool: nn.Module) -> Mixed:
    """8x8: 1x1, then two towers that fork into 1x3 beside 3x1, pooled."""

    def fork() -> Mixed:
        return Mixed({"conv": Unit(384, 384, (1, 3)), "conv_1": Unit(384, 384, (3, 1))})

    return Mixed(
        {
            "conv": Unit(inputs, 320),
            "tower": chain(inputs, (384, 1), after=fork()),
            "tower_1": chain(inputs, (448, 1), (384, 3), after=fork()),
            "tower_2": chain(inputs, (192, 1), before=pool),
        }
    )


def _halve_35() -> Mixed:
    tower = chain(288, (64, 1), (96, 3), (96, 3, 2))
    return Mixed({"conv": Unit(288, 384, 3, 2), "tower": tower, "pool": nn.MaxPool2d(3, 2)})


def _halve_17() -> Mixed:
    tower_1 = chain(768, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2))
    return Mixed({"tower": chain(768, (192, 1), (320, 3, 2)), "tower_1": tower_1, "pool": nn.MaxPool2d(3, 2)})


class Network(nn.Module):
    """Images (B, 3, 299, 299) in [-1, 1] -> the maps of mixed_6 (B, 768, 17, 17) and mixed_10 (B, 2048, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Unit(3, 32, 3, 2)
        self.conv_1 = Unit(32, 32, 3, padded=False)
        self.conv_2 = Unit(32, 64, 3)
        self.pool = nn.MaxPool2d(3, 2)
        self.conv_3 = Unit(64, 80)
        self.conv_4 = Unit(80, 192, 3, padded=False)
        self.pool_1 = nn.MaxPool2d(3, 2)
        self.mixed, self.mixed_1, self.mixed_2 = _coarse(192, 32), _coarse(256, 64), _coarse(288, 64)
        self.mixed_3 = _halve_35()
        self.mixed_4, self.mixed_5, self.mixed_6, self.mixed_7 = map(_middle, (128, 160, 160, 192))
        self.mixed_8 = _halve_17()
        self.mixed_9 = _fine(1280, average_pool())
        self.mixed_10 = _fine(2048, nn.MaxPool2d(3, 1, 1))  # where the paper has an average
        self.softmax = nn.Linear(WIDTH, CLASSES, bias=False)  # the graph has a bias, which no score uses

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool(self.conv_2(self.conv_1(self.conv(x))))
        x = self.pool_1(self.conv_4(self.conv_3(x)))
        x = self.mixed_3(self.mixed_2(self.mixed_1(self.mixed(x))))
        middle = self.mixed_6(self.mixed_5(self.mixed_4(x)))
        return middle, self.mixed_10(self.mixed_9(self.mixed_8(self.mixed_7(middle))))


def resize_tf1(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear as tf.image.resize_bilinear(align_corners=False) of TensorFlow 1: (B, C, H, W) float -> (B, C, *size).

    Output pixel i takes its value at i * in / out of the input: no half-pixel centres, no antialias, the last row and
    column repeated. Along W first, then H, in x's dtype.
    """
    for axis in (3, 2):
        scale = torch.tensor(x.shape[axis], dtype=x.dtype) / size[axis - 2]
        place = torch.arange(size[axis - 2], dtype=x.dtype) * scale
        low = place.long()
        high = (low + 1).clamp_max(x.shape[axis] - 1)
        share = (place - low).to(x.device).view(-1, *(1,) * (3 - axis))
        before, after = (x.index_select(axis, index.to(x.device)) for index in (low, high))
        x = before + (after - before) * share
    return x


def prepare(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) uint8 -> (B, 3, 299, 299) float32: resized as TensorFlow 1 does it, then (x - 128) / 128."""
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"inception: expected uint8 images (B, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}; "
            "grey ones are repeated to three channels"
        )
    x = resize_tf1(images.float(), (SIDE, SIDE))
    return ((x - 128) / 128).expand(-1, 3, -1, -1)


@contextmanager
def _whole_floats(device: torch.device) -> Iterator[None]:
    """float32 proper: neither TF32 nor the autocast of a training run around us."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def most_at_once(device: torch.device) -> int:
    """Images in the network at once where a caller names no number: an accelerator takes what callers usually give."""
    return ON_CPU if device.type == "cpu" else ELSEWHERE


class Inception:
    """Extractor of ADM's evaluator: pool_3 (2,048), sFID's numbers and class probabilities, float32.

    state: tensors in Network's keys, what `read_inception_file` and `convert_inception` give. id names the weights
    ("adm-inception-" and 8 hex digits), whichever layout they came in.
    """

    width = WIDTH

    def __init__(self, state: Mapping[str, Tensor]):
        with torch.device("meta"):
            self.network = Network()
        self.network.load_state_dict(state, assign=True)
        self.network.eval().requires_grad_(False)
        self.id = f"adm-inception-{weight_hash(self.network.state_dict())[:8]}"
        self.to("cpu")

    def to(self, device: torch.device | str) -> Inception:
        """Move the network; images are moved to it when called."""
        quick = torch.channels_last if torch.device(device).type == "cpu" else torch.contiguous_format
        self.network.to(device).to(memory_format=quick)  # type: ignore[call-overload]
        return self

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.network.softmax.weight.device

    def _maps(self, images: Tensor, batch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The two maps of `batch` images at a time, so that memory does not grow with their number."""
        batch = batch or most_at_once(self.device)
        with _whole_floats(self.device):
            for i in range(0, len(images), batch):
                yield self.network(prepare(images[i : i + batch].to(self.device)))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """(B, 1 or 3, H, W) uint8 -> Features: tokens (B, 64, 2048) of the last 8x8 map, pooled their mean (pool_3)."""
        tokens = [last.flatten(2).mT for _, last in self._maps(images, None)]
        every = torch.cat(tokens) if tokens else torch.empty(0, 64, WIDTH, device=self.device)
        return Features(every, every.mean(1), (8, 8))

    @torch.no_grad()
    def views(self, images: Tensor, batch: int | None = None) -> Views:
        """(B, 1 or 3, H, W) uint8 -> Views on the CPU; batch: in the network at once, None: `most_at_once`.

        pooled (B, 2048): pool_3. spatial (B, 2023): the first 7 channels of mixed_6/conv after its ReLU, 17x17, in the
        order row, column, channel. probabilities (B, 1008): softmax of pool_3 times the weights, WITHOUT the bias, as
        the evaluator makes them for the Inception Score.
        """
        pooled, spatial, probabilities = [torch.empty(0, WIDTH)], [torch.empty(0, 17 * 17 * SPATIAL)], []
        for middle, last in self._maps(images, batch):
            pooled.append(last.mean((2, 3)).cpu())
            probabilities.append(self.network.softmax(last.mean((2, 3))).softmax(1).cpu())
            # mixed_6/conv is the first branch of mixed_6
            spatial.append(middle[:, :SPATIAL].permute(0, 2, 3, 1).flatten(1).cpu())
        return Views(torch.cat(pooled), torch.cat(spatial), torch.cat([torch.empty(0, CLASSES), *probabilities]))

    def probabilities(self, images: Tensor, batch: int | None = None) -> Tensor:
        """Class probabilities (N, 1008) of uint8 images (N, 1 or 3, H, W), on the CPU: those of `views`."""
        views = self.views(images, batch)
        assert views.probabilities is not None
        return views.probabilities
