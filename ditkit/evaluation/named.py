"""Protocols that papers share, as data: what each fixes, what its reference is, and what to beware of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

INCEPTION = "adm-inception"  # ids of this network are adm-inception-<hash of its weights>
IMAGES = "images"  # stands for an extractor where images are compared pixel by pixel (PSNR, SSIM)
CLASSES = ("random", "balanced", "balanced_sorted", "none")  # label modes of class-conditional and plain models

# ADM's evaluator: neighbour distances in float16 where they are finite, consecutive splits of 5,000, k = 3
ADM_RULES = {"distances": "adm", "neighbours": 3, "split": 5000}
ADM_SUITE = ("frechet", "spatial_frechet", "inception_score", "precision", "recall")
ADM_PARTS = {
    "mu, sigma": "frechet (FID): moments of the whole training set, not of arr_0",
    "mu_s, sigma_s": "spatial_frechet (sFID): moments of 7 channels of mixed_6/conv, of the whole training set",
    "arr_0": "precision, recall: 10,000 training images",
}
ADM_LENGTHS = {"arr_0": 10_000, "mu": 2048, "mu_s": 2023}
ADM_FILES = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"


@dataclass(frozen=True)
class NamedProtocol:
    """What a name in a paper's table stands for. Where a field is empty, the name leaves it open.

    n: generated images. size: their (H, W). extractor: a family of ids. metrics: what the name reports. rules: values
    of `protocols.Rules`. labels: how classes or prompts may have been asked for. made: what kind of images are scored.
    against: whether the real side is a published file or the user's own copy of the images; reference: the name of
    that file, or what images; reference_n: how many real images may be behind it, the usual number first; serves: what
    each part of it is for; lengths: how long the file's arrays are.
    """

    name: str
    purpose: str
    n: int | None = None
    size: tuple[int, int] | None = None
    resize: tuple[str, ...] = ()
    extractor: str = ""
    metrics: tuple[str, ...] = ()
    rules: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    made: Literal["samples", "reconstructions", "any"] = "any"
    against: Literal["file", "images", "any"] = "any"
    reference: str = ""
    reference_n: tuple[int, ...] = ()
    serves: Mapping[str, str] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    origin: str = ""
    caution: str = ""

    def unmet(self, stated: Any) -> list[str]:
        """What of a stated `protocols.Protocol` is not as this name has it, a phrase each."""
        wrong = self.unmet_by_images(stated.n, stated.size)
        if self.resize and stated.resize not in self.resize:
            wrong.append(f"resize must be {' or '.join(map(repr, self.resize))}, not {stated.resize!r}")
        made = "reconstructions" if "posterior" in stated.sampler else "samples"
        if self.made not in ("any", made):
            wrong.append(f"it is of {self.made}, not of {made}")
        pairs = stated.extractor == IMAGES and self.made == "reconstructions"  # PSNR, SSIM: through no network
        if self.extractor and not pairs and not of_family(stated.extractor, self.extractor):
            wrong.append(f"extractor must be {self.extractor!r}, not {stated.extractor!r}")
        # images that came without their making are taken as given; classes that a user picked are not the protocol's
        if self.labels and stated.labels not in self.labels and (stated.labels != "given" or stated.sampler):
            wrong.append(f"labels must be {' or '.join(map(repr, self.labels))}, not {stated.labels!r}")
        wrong += self.unmet_by_reals(stated.reference_n)
        for key, value in self.rules.items():
            if (found := getattr(stated.rules, key)) != value:
                wrong.append(f"rules.{key} must be {value!r}, not {found!r}")
        return wrong

    def unmet_by_images(self, n: int, size: tuple[int, ...] | None) -> list[str]:
        """What of n images of size (H, W) this name does not allow, a phrase each: known before anything is scored."""
        wrong = [f"n must be {self.n}, not {n}"] if self.n not in (None, n) else []
        if self.size not in (None, size):
            found = "x".join(map(str, size)) if size else "of an untold size"
            wrong.append(f"images must be {'x'.join(map(str, self.size or ()))}, not {found}")
        return wrong

    def unmet_by_reals(self, n: int) -> list[str]:
        """What is wrong with n real images behind the reference, a phrase."""
        if not self.reference_n or n in self.reference_n:
            return []
        return [f"it has {' or '.join(f'{k:,}' for k in self.reference_n)} real images, here are {n:,}"]


def of_family(extractor: str, family: str) -> bool:
    """Whether an extractor's id is of a family: "adm-inception-1f3a5b7c" is of "adm-inception"."""
    return extractor == family or extractor.startswith(f"{family}-")


def _adm(side: int, file: str, **changes: Any) -> NamedProtocol:
    facts: dict[str, Any] = {
        "name": f"adm-imagenet{side}-50k",
        "purpose": f"generation on ImageNet {side} x {side}, as DiT, SiT, REPA and DDT report it",
        "n": 50_000,
        "size": (side, side),
        "resize": ("none",),  # files of the native size: the network's own graph resizes to 299
        "extractor": INCEPTION,
        "metrics": ADM_SUITE,
        "rules": ADM_RULES,
        "labels": CLASSES,
        "made": "samples",
        "against": "file",
        "reference": file,
        "serves": ADM_PARTS,
        "lengths": ADM_LENGTHS,
        "origin": f"{ADM_FILES}/{side}/{file}",
        "caution": "balanced labels lower FID by about 0.1 against random ones; Inception Score depends on the order "
        "of the images through its splits; an image resized before the network, or stored as JPEG, is another protocol",
    }
    return NamedProtocol(**{**facts, **changes})


NAMED = {
    p.name: p
    for p in (
            _adm(256, "VIRTUAL_imagenet256_labeled.npz"),
            _adm(
                512, "VIRTUAL_imagenet512.npz",
                serves={**ADM_PARTS, "arr_0": "precision, recall (DiT's Table 3 used 1,000 real images)"},
                lengths={key: n for key, n in ADM_LENGTHS.items() if key != "arr_0"},  # of which tables took some
            ),
            NamedProtocol(
                name="rfid-imagenet-val",
                purpose="reconstruction by a codec: 50,000 validation images against what it makes of them",
                n=50_000,
                resize=("none",),
                extractor=INCEPTION,
                metrics=("frechet", "psnr", "ssim"),
                labels=("none",),
                made="reconstructions",
                against="images",
                reference="ImageNet's validation images, at the size that the codec saw (not training statistics)",
                reference_n=(50_000,),
                serves={"images": "frechet (rFID), psnr, ssim: each against its own reconstruction"},
                origin="ILSVRC 2012 validation set, which is yours to get",
                caution="validation images against their reconstructions: never comparable with a gFID, whose "
                "reference is the training set; another crop or resize of the validation images is another protocol",
            ),
            NamedProtocol(
                name="coco-30k",
                purpose="text to image: 30,000 captions of COCO val2014, one image each",
                n=30_000,
                size=(256, 256),
                resize=("none",),
                extractor=INCEPTION,
                metrics=("frechet", "inception_score", "precision", "recall"),
                rules=ADM_RULES,
                labels=("prompts",),
                made="samples",
                against="images",
                reference="COCO val2014, centre crop, 256 x 256",
                reference_n=(30_000, 40_504),
                serves={"images": "frechet (FID-30K), precision, recall"},
                origin="COCO 2014 validation images and captions_val2014.json, which are yours to get",
                caution="papers differ in the captions drawn, in how many real images they take (30,000 or all 40,504) "
                "and in their crop; guidance moves FID up while pictures follow their text better: read a CLIP score "
                "beside it",
            ),
            NamedProtocol(name="custom", purpose="one's own data; nothing is fixed, everything is stored"),
    )
}  # fmt: skip


def find_protocol(name: str) -> NamedProtocol | None:
    """The named protocol; None for a word of the user's own. ValueError where the word looks like a slip of a name."""
    if name not in NAMED and (near := get_close_matches(name, NAMED, 1, cutoff=0.75)):
        raise ValueError(
            f"protocol {name!r} is not known; did you mean {near[0]!r}? (your own words need another look)"
        )
    return NAMED.get(name)
