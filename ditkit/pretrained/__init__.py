"""Frozen networks behind small protocols: codecs, vision teachers, text encoders, and toy stand-ins of each."""

from ditkit.pretrained.augment import Augment, default_augment
from ditkit.pretrained.caption import Captioner, load_captioner
from ditkit.pretrained.codec import PixelCodec, sample_posterior
from ditkit.pretrained.deep import DeepCodec
from ditkit.pretrained.extractors import ClipEmbedding, load_extractor, load_inception
from ditkit.pretrained.identity import weight_hash
from ditkit.pretrained.inception import Inception
from ditkit.pretrained.kl import KLCodec
from ditkit.pretrained.load import TEACHERS, TeacherSettings, load_teacher
from ditkit.pretrained.missing import PretrainedMissing
from ditkit.pretrained.open_codec import CodecSettings, load_codec
from ditkit.pretrained.rae import RAECodec
from ditkit.pretrained.text import TextSettings, load_text
from ditkit.pretrained.text_cache import CachedText
from ditkit.pretrained.text_sd3 import LastCLIP, SD3Text
from ditkit.pretrained.tiny import TinyCodec
from ditkit.pretrained.toy import ToyCodec, ToyExtractor, ToyTextEncoder
from ditkit.pretrained.vision import VisionTeacher
from ditkit.pretrained.vit import SelfTaught, ViT, ViTSettings, vit_settings

__all__ = [
    "TEACHERS",
    "Augment",
    "CachedText",
    "Captioner",
    "ClipEmbedding",
    "CodecSettings",
    "DeepCodec",
    "Inception",
    "KLCodec",
    "LastCLIP",
    "PixelCodec",
    "PretrainedMissing",
    "RAECodec",
    "SD3Text",
    "SelfTaught",
    "TeacherSettings",
    "TextSettings",
    "TinyCodec",
    "ToyCodec",
    "ToyExtractor",
    "ToyTextEncoder",
    "ViT",
    "ViTSettings",
    "VisionTeacher",
    "default_augment",
    "load_captioner",
    "load_codec",
    "load_extractor",
    "load_inception",
    "load_teacher",
    "load_text",
    "sample_posterior",
    "vit_settings",
    "weight_hash",
]
