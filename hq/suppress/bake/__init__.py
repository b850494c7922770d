"""α folded into the weights that a model is stored in: no callback, no overhead, and a way back."""

from hq.suppress.bake.baking import bake, nearest_factors, read_record, undo
from hq.suppress.bake.compatibility import require_owner
from hq.suppress.bake.record import BakeRecord
from hq.suppress.bake.verification import Verification, verify

__all__ = [
    "BakeRecord",
    "Verification",
    "bake",
    "nearest_factors",
    "read_record",
    "require_owner",
    "undo",
    "verify",
]
