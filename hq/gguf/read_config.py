"""Build the transformers config that computes the same as llama.cpp does from a GGUF file.

transformers' own GGUF reader drops most settings: rotary scaling, biases, soft caps, windows, query
scales. How each architecture is read is in its record (`hq.models.architectures`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hq.gguf.file import GGUFFile
from hq.models.architectures.gguf_settings import Fields, GGUFSettings

if TYPE_CHECKING:  # the import takes a second
    from transformers import PretrainedConfig

ROPE_TENSORS = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)
"""Tensors that become part of the config, as transformers' models have no such weights."""


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """A config, and the keys of the file that it does not represent.

    The effect of such a key is unknown, so a file that has one must be compared with llama.cpp.
    """

    config: "PretrainedConfig"
    unread: tuple[str, ...]


def config_of(file: GGUFFile) -> ReadConfig:
    """The transformers config of the model in a file.

    Raises HQError if transformers' model of the architecture does not support a setting.
    """
    settings, layout = GGUFSettings(file), file.layout
    fields = _special_tokens(file) | layout.fields(settings)
    name = file.metadata.get("general.name")
    if isinstance(name, str):
        fields["_model_name_or_path"] = name
    from transformers import AutoConfig

    config = AutoConfig.for_model(layout.model_type, **fields)
    return ReadConfig(config, settings.unread())


def _special_tokens(file: GGUFFile) -> Fields:
    """Ids by transformers' names; llama.cpp has three keys for tokens that end an answer."""
    ids = {
        name: file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in {
            "bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "eot": "eot",
            "eom": "eom",
        }.items()
    }  # fmt: skip
    distinct = dict.fromkeys(ids.pop(key) for key in ("eos", "eot", "eom"))
    ends = [end for end in distinct if end is not None]
    fields: Fields = {f"{name}_token_id": id for name, id in ids.items() if id is not None}
    fields.setdefault("bos_token_id", None)  # not the config's default, which is another model's
    fields.setdefault("pad_token_id", None)
    return fields | {"eos_token_id": ends if len(ends) > 1 else next(iter(ends), None)}
