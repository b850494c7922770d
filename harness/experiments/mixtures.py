"""The refusal of mixtures of experts by experiments that are defined for dense layers only."""

from harness.stages.materials import Materials
from hq.errors import HQError


def require_dense(m: Materials, reason: str) -> None:
    """Raises HQError, with the reason, if the study's model is a mixture of experts."""
    if m.model.space.has_experts:
        raise HQError(f"{m.study.model} is a mixture of experts, and {reason}: use a dense model.")
