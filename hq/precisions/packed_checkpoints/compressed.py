"""What a compressed-tensors config states, as llm-compressor writes it, in the terms of GPTQ's.

Such a config can describe more than packed integers: activations in 8 bits, floats, rotations that
run at each token. A model without them would be another one, so they are refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hq.errors import HQError

METHOD = "compressed-tensors"
_FORMAT = "pack-quantized"
_GROUP_SIZE = {"group": None, "channel": -1}  # -1: one group a row


def flat(path: Path, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Method, bits, group size and symmetry. HQError for what is not packed integers alone."""
    groups = stated.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        count = len(groups) if isinstance(groups, dict) else "no"
        raise _refusal(path, f"has {count} groups of layers with schemes of their own")
    (group,) = groups.values()
    if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
        raise _refusal(path, f"names the scheme {group!r} only")
    form = group.get("format") or stated.get("format")
    if form != _FORMAT:
        raise _refusal(path, f"is in the format {form!r}, not {_FORMAT!r}")
    for what in ("input_activations", "output_activations"):
        if group.get(what):
            raise _refusal(path, f"quantizes {what.replace('_', ' ')}")
    for what in ("transform_config", "kv_cache_scheme", "sparsity_config"):
        found = stated.get(what)
        dense = isinstance(found, dict) and found.get("format") == "dense"
        if found and not dense:
            raise _refusal(path, f"has a {what}")
    weights = group["weights"]
    strategy, kind = weights.get("strategy"), weights.get("type", "int")
    if strategy not in _GROUP_SIZE or kind != "int":
        raise _refusal(path, f"has {kind} weights by {strategy}")
    return {
        "method": METHOD,
        "bits": weights.get("num_bits"),
        "group_size": _GROUP_SIZE[strategy] or weights.get("group_size"),
        "sym": weights.get("symmetric", True),
    }


def _refusal(path: Path, what: str) -> HQError:
    return HQError(f"{path} {what}, which hq does not read: give one of W4A16 or W8A16.")
