"""Frozen networks behind small protocols: codecs, vision teachers, text encoders, and toy stand-ins of each."""

from ditkit.pretrained.codec import PixelCodec
from ditkit.pretrained.missing import PretrainedMissing
from ditkit.pretrained.toy import ToyCodec, ToyExtractor, ToyTextEncoder

__all__ = ["PixelCodec", "PretrainedMissing", "ToyCodec", "ToyExtractor", "ToyTextEncoder"]
