"""Named ways to run one source checkpoint; importing this package registers them all."""

from hq.precisions import bitsandbytes, dense
from hq.precisions.base import PRECISIONS, Precision

__all__ = ["PRECISIONS", "Precision", "bitsandbytes", "dense"]
