"""α folded into the weights that a model is stored in: no callback, no overhead, and a way back."""

from hq.bake.baking import bake, nearest, read_record, undo
from hq.bake.belonging import require_owner
from hq.bake.record import Record
from hq.bake.verification import Verification, verify

__all__ = [
    "Record",
    "Verification",
    "bake",
    "nearest",
    "read_record",
    "require_owner",
    "undo",
    "verify",
]
