"""Sources of images, their order, and the loader that turns them into batches."""

from ditkit.data.buckets import Buckets, BucketSettings
from ditkit.data.captions import Columns
from ditkit.data.digits import Digits
from ditkit.data.folder import Folder
from ditkit.data.loader import Batch, Loader
from ditkit.data.open import open_source
from ditkit.data.order import BucketOrder, Order
from ditkit.data.parquet import Parquet
from ditkit.data.rejects import Rejects, read_rejects
from ditkit.data.scan import Scan, scan
from ditkit.data.scenes import Scene, Scenes
from ditkit.data.settings import DataSettings
from ditkit.data.source import DataError, ImageSource, Subset, stratified_split
from ditkit.data.transforms import adm_crop, to_float, to_uint8

__all__ = [
    "Batch",
    "BucketOrder",
    "BucketSettings",
    "Buckets",
    "Columns",
    "DataError",
    "DataSettings",
    "Digits",
    "Folder",
    "ImageSource",
    "Loader",
    "Order",
    "Parquet",
    "Rejects",
    "Scan",
    "Scene",
    "Scenes",
    "Subset",
    "adm_crop",
    "open_source",
    "read_rejects",
    "scan",
    "stratified_split",
    "to_float",
    "to_uint8",
]
