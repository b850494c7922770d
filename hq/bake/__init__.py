"""α folded into the weights that a model is stored in: no callback, no overhead, and a way back."""

from hq.bake.baking import bake, identity_of, nearest, read_record, undo
from hq.bake.record import Record
from hq.bake.verification import Verification, verify

__all__ = [
    "Record",
    "Verification",
    "bake",
    "identity_of",
    "nearest",
    "read_record",
    "undo",
    "verify",
]
