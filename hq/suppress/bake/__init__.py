"""α baked into the stored weights of a model: suppression without a callback, which can be undone.

Scaling in a running model is `Backend.scale` in `hq.backends`; adapters are in `hq.suppress.lora`.
"""

from hq.suppress.bake.baking import bake, nearest_factors, read_record, undo
from hq.suppress.bake.compatibility import require_owner
from hq.suppress.bake.record import BakeRecord
from hq.suppress.bake.verification import Verification, verify_baked

__all__ = [
    "BakeRecord",
    "Verification",
    "bake",
    "nearest_factors",
    "read_record",
    "require_owner",
    "undo",
    "verify_baked",
]
