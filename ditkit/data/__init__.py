"""Sources of images, their order, and the loader that turns them into batches."""

from ditkit.data.buckets import Buckets, BucketSettings
from ditkit.data.caption_all import Captioned, caption_all, check_free
from ditkit.data.captions import Columns, synthetic_path
from ditkit.data.digits import Digits
from ditkit.data.folder import Folder
from ditkit.data.hub import Hub
from ditkit.data.index import Index, Rule, identity_of, read_index, write_index
from ditkit.data.loader import Batch, Loader
from ditkit.data.mixing import drop_captions
from ditkit.data.open import NAMED, open_source
from ditkit.data.order import BucketOrder, Order
from ditkit.data.pairs import Pairs
from ditkit.data.parquet import Parquet
from ditkit.data.rate import loader_rates
from ditkit.data.rejects import Rejects, read_rejects
from ditkit.data.scan import Scan, scan
from ditkit.data.scenes import Scene, Scenes
from ditkit.data.settings import DataSettings
from ditkit.data.source import DataError, ImageSource, Subset, stratified_split
from ditkit.data.tar import Tar
from ditkit.data.transforms import adm_crop, to_float, to_uint8

__all__ = [
    "NAMED",
    "Batch",
    "BucketOrder",
    "BucketSettings",
    "Buckets",
    "Captioned",
    "Columns",
    "DataError",
    "DataSettings",
    "Digits",
    "Folder",
    "Hub",
    "ImageSource",
    "Index",
    "Loader",
    "Order",
    "Pairs",
    "Parquet",
    "Rejects",
    "Rule",
    "Scan",
    "Scene",
    "Scenes",
    "Subset",
    "Tar",
    "adm_crop",
    "caption_all",
    "check_free",
    "drop_captions",
    "identity_of",
    "loader_rates",
    "open_source",
    "read_index",
    "read_rejects",
    "scan",
    "stratified_split",
    "synthetic_path",
    "to_float",
    "to_uint8",
    "write_index",
]
