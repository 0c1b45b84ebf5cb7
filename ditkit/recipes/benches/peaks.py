"""What makers state that their devices do: dense matrix products, TFLOP/s at 2 operations a multiply-accumulate."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """TFLOP/s without sparsity, by the dtype of the products; 0: the maker states none."""

    bf16: float
    tf32: float
    fp32: float
    source: str


_HOPPER, _AMPERE = "NVIDIA H100 data sheet", "NVIDIA A100 data sheet"
# a part of torch.cuda.get_device_name -> its peak; the first that is found counts, so the longer names come first
PEAKS: tuple[tuple[str, Peak], ...] = (
    ("B200", Peak(2250.0, 1125.0, 75.0, "NVIDIA Blackwell architecture brief (HGX B200)")),
    ("GH200", Peak(989.5, 494.7, 67.0, "NVIDIA GH200 data sheet")),
    ("H200 NVL", Peak(835.5, 417.5, 60.0, "NVIDIA H200 data sheet")),
    ("H200", Peak(989.5, 494.7, 67.0, "NVIDIA H200 data sheet")),
    ("H800", Peak(989.5, 494.7, 67.0, _HOPPER)),
    ("H100 NVL", Peak(835.5, 417.5, 60.0, _HOPPER)),
    ("H100 PCIe", Peak(756.5, 378.0, 51.0, _HOPPER)),
    ("H100", Peak(989.5, 494.7, 67.0, _HOPPER)),
    ("H20", Peak(148.0, 74.0, 44.0, "NVIDIA H20 data sheet")),
    ("A100", Peak(312.0, 156.0, 19.5, _AMPERE)),
    ("A800", Peak(312.0, 156.0, 19.5, _AMPERE)),
    ("A10G", Peak(70.0, 35.0, 35.0, "NVIDIA A10G data sheet")),
    ("A10", Peak(125.0, 62.5, 31.2, "NVIDIA A10 data sheet")),
    ("L40S", Peak(362.0, 183.0, 91.6, "NVIDIA L40S data sheet")),
    ("L40", Peak(181.0, 90.5, 90.5, "NVIDIA L40 data sheet")),
    ("L4", Peak(121.0, 60.0, 30.3, "NVIDIA L4 data sheet")),
    ("RTX 4090", Peak(165.2, 82.6, 82.6, "NVIDIA Ada architecture white paper (FP32 accumulate)")),
    ("RTX 3090", Peak(71.0, 35.6, 35.6, "NVIDIA GA102 white paper (FP32 accumulate)")),
    ("MI300X", Peak(1307.4, 653.7, 163.4, "AMD Instinct MI300X data sheet")),
    ("MI250X", Peak(383.0, 0.0, 95.7, "AMD Instinct MI250X data sheet")),
)


def stated_peak(name: str, dtype: str) -> tuple[float, str] | None:
    """(TFLOP/s, where that stands) of a device's name for "bf16", "tf32" or "fp32"; None for one that is not listed."""
    for part, peak in PEAKS:
        if part.lower() in name.lower():
            found = float(getattr(peak, dtype))
            return (found, peak.source) if found else None
    return None


def device_peak(device: torch.device, dtype: str, given: float | None = None) -> tuple[float, str] | None:
    """The peak that a user gives, else that of the device's name; None on a CPU, whose makers state none."""
    if given is not None:
        return given, "given"
    return stated_peak(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None
