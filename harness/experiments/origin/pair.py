"""Validation of a pair of checkpoints: whether one can have been tuned from the other."""

from typing import Any

from harness.stages.materials import Materials
from hq.errors import HQError
from hq.models.alignment import ALIGNED, LayerMap, LayerRelation
from hq.models.checkpoint import text_config

_COMPARABLE = ALIGNED | {LayerRelation.CHANGED}


def require_pair(base: Materials, tuned: Materials) -> None:
    """Raises HQError unless the checkpoints differ, and have one architecture and vocabulary."""
    if base.model.fingerprint == tuned.model.fingerprint:
        raise HQError(
            f"{base.path} and {tuned.path} have the same weights (fingerprint "
            f"{base.model.fingerprint}): name the base model and a model that was tuned from it."
        )
    configs = {"base": text_config(base.path), "tuned": text_config(tuned.path)}
    kinds = {name: config.model_type for name, config in configs.items()}
    if kinds["base"] != kinds["tuned"]:
        raise HQError(
            f"The base model {base.path} has the architecture {kinds['base']}, the tuned model "
            f"{tuned.path} {kinds['tuned']}: name a model and its own base."
        )
    sizes = {
        name: f"{m.model.space} and hidden states of {configs[name].hidden_size}"
        for name, m in (("base", base), ("tuned", tuned))
    }
    if base.model.space != tuned.model.space or sizes["base"] != sizes["tuned"]:
        raise HQError(
            f"The base model {base.path} has {sizes['base']}, the tuned model {tuned.path} "
            f"{sizes['tuned']}: name a model and its own base."
        )
    _require_vocabulary(base, tuned)


def _require_vocabulary(base: Materials, tuned: Materials) -> None:
    """Raises HQError if an ordinary token differs; tuning may add or rename special tokens."""
    one, other = (_ordinary_tokens(m.tokenizer) for m in (base, tuned))
    differing = sorted(
        token for token in one.keys() | other.keys() if one.get(token) != other.get(token)
    )
    if differing:
        raise HQError(
            f"The base model {base.path} and the tuned model {tuned.path} have different "
            f"vocabularies: {len(differing)} tokens differ, as {differing[0]!r}; name a model and "
            "its own base."
        )


def _ordinary_tokens(tokenizer: Any) -> dict[str, int]:
    added = set(tokenizer.added_tokens_decoder)
    return {token: id for token, id in tokenizer.get_vocab().items() if id not in added}


def require_same_neurons(mapped: LayerMap) -> None:
    """Raises HQError unless each neuron of a tuned layer is the base's at the same index."""
    own = mapped.permutation.new_tensor(range(len(mapped.permutation)))
    moved = int((mapped.matched & (mapped.permutation != own)).sum())
    if mapped.relation not in _COMPARABLE or moved or "rotated" in mapped.note:
        what = f"{moved} have another index" if moved else mapped.note or mapped.relation.value
        raise HQError(
            f"The neurons of the tuned model are not those of the base in layer {mapped.layer} "
            f"({what}), so their weights cannot be compared: name a model and its own base."
        )
