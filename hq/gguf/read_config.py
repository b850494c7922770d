"""The transformers config that computes what llama.cpp computes from a GGUF file's metadata.

transformers' own GGUF reader drops most of it: rotary scaling, biases, soft caps, windows, query
scales. How each architecture is read is in its record (`hq.models.architectures`).
"""

from dataclasses import dataclass

from transformers import AutoConfig, PretrainedConfig

from hq.gguf.file import GGUFFile
from hq.gguf.layout import ARCHITECTURES
from hq.models.architectures.gguf_settings import Fields, GGUFSettings

ROPE_TENSORS = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)
"""Tensors that the config carries, as they are no weights of transformers' models."""


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """A config, and the keys of the file that it does not carry.

    What such a key does is not known here: a file with one has to be compared with llama.cpp.
    """

    config: PretrainedConfig
    unread: tuple[str, ...]


def config_of(file: GGUFFile) -> ReadConfig:
    """The config of a file's model in transformers.

    Raises HQError for a setting that transformers' model of the architecture does not have.
    """
    settings, layout = GGUFSettings(file), ARCHITECTURES[file.architecture]
    fields = _special_tokens(file) | layout.fields(settings)
    name = file.metadata.get("general.name")
    if isinstance(name, str):
        fields["_model_name_or_path"] = name
    config = AutoConfig.for_model(layout.model_type, **fields)
    return ReadConfig(config, settings.unread())


def _special_tokens(file: GGUFFile) -> Fields:
    """Ids by transformers' names; llama.cpp has three places for what ends an answer."""
    ids = {
        name: file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in {
            "bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "eot": "eot",
            "eom": "eom",
        }.items()
    }  # fmt: skip
    ends = dict.fromkeys(ids.pop(key) for key in ("eos", "eot", "eom"))
    listed = [end for end in ends if end is not None]
    fields: Fields = {f"{name}_token_id": id for name, id in ids.items() if id is not None}
    fields.setdefault("bos_token_id", None)  # a config's own default is some other model's
    fields.setdefault("pad_token_id", None)
    return fields | {"eos_token_id": listed if len(listed) > 1 else next(iter(listed), None)}
