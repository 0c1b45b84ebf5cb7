"""Small networks in which nothing is zero, and batches for them."""

from __future__ import annotations

import pytest
import torch

from ditkit.models import Condition, build_model, reads_text


@pytest.fixture(scope="session")
def network():
    """network(settings) -> a model in eval mode in which nothing is zero."""

    def make(settings):
        generator = torch.Generator().manual_seed(7)
        model = build_model(settings)
        with torch.no_grad():
            for name, p in model.named_parameters():
                scale = "norm" in name and name.endswith("weight")  # norm scales stay around 1
                p.copy_(torch.randn(p.shape, generator=generator) * 0.15 + scale)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def batch():
    """batch(settings, n, size) -> x (n, C, H, W), t (n,), cond."""

    def make(settings, n=3, size=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, settings.channels, *(size or settings.size), generator=generator)
        t = torch.rand(n, generator=generator)
        if reads_text(settings):
            text = torch.randn(n, settings.text_length, settings.text_width, generator=generator)
            pooled = torch.randn(n, settings.pooled_width, generator=generator) if settings.pooled_width else None
            mask = torch.arange(settings.text_length) <= torch.arange(n)[:, None] + 1  # 2, 3, ... tokens count
            return x, t, Condition(text=text, mask=mask, pooled=pooled)
        labels = torch.arange(n) % max(settings.num_classes, 1)
        return x, t, Condition(label=labels) if settings.num_classes else Condition()

    return make
