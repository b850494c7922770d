"""GPT-2 and its successors: FFNs without a gate, LayerNorm, projections with a bias."""

from dataclasses import replace
from typing import TYPE_CHECKING

from hq.models.architectures import llama_cpp
from hq.models.architectures.gguf_settings import Fields, GGUFSettings
from hq.models.architectures.record import (
    GGUF_LAYOUTS,
    Architecture,
    Layout,
    attribute,
    register_architecture,
)
from hq.models.norm_digest import NormNames

if TYPE_CHECKING:  # the import takes a second
    from transformers import PretrainedConfig

_GPT = Architecture(layers="h", down="mlp.c_proj", up="mlp.c_fc", gate="", norm="ln_2")
_GPTJ = Architecture(layers="h", down="mlp.fc_out", up="mlp.fc_in", gate="", norm="ln_1")
_NEOX = Architecture(down="mlp.dense_4h_to_h", up="mlp.dense_h_to_4h", gate="")


def _four_hidden(config: "PretrainedConfig") -> int:
    """Width of BLOOM and MPT; transformers ignores MPT's `expansion_ratio`."""
    return 4 * int(config.hidden_size)


def _gpt2_fields(settings: GGUFSettings) -> Fields:
    return {
        "vocab_size": settings.file.vocabulary,
        "n_positions": settings.size("context_length"),
        "n_embd": settings.size("embedding_length"),
        "n_inner": settings.size("feed_forward_length"),
        "n_layer": settings.size("block_count"),
        "n_head": settings.size("attention.head_count"),
        "layer_norm_epsilon": settings.get("attention.layer_norm_epsilon"),
        "tie_word_embeddings": "output.weight" not in settings.file.tensors,
    }


register_architecture(
    replace(
        _GPT,
        transposed=True,
        width=attribute("n_inner"),
        norms=NormNames({"ln_1": "attn_norm", "ln_2": "ffn_norm"}, layers="h", final="ln_f"),
    ),
    "gpt2",
)
register_architecture(replace(_GPT, width=attribute("n_inner")), "gpt_bigcode")
register_architecture(replace(_GPT, width=attribute("intermediate_size")), "gpt_neo")
register_architecture(replace(_GPTJ, width=attribute("n_inner")), "codegen", "gptj")
register_architecture(_NEOX, "gpt_neox", "persimmon")
register_architecture(replace(_NEOX, layers="h", width=_four_hidden), "bloom")
register_architecture(Architecture(down="mlp.c_proj", up="mlp.c_fc", gate=""), "starcoder2")
register_architecture(
    Architecture(
        layers="blocks",
        down="ffn.down_proj",
        up="ffn.up_proj",
        gate="",
        norm="norm_2",
        width=_four_hidden,
    ),
    "mpt",
)
GGUF_LAYOUTS.add(
    "gpt2",
    Layout(
        "gpt2",
        _gpt2_fields,
        llama_cpp.NORMS | llama_cpp.FFN_SHAPES,
        llama_cpp.OUTSIDE | {"position_embd": "d_model context"},
        biased=frozenset(
            {
                *llama_cpp.NORMS,
                *llama_cpp.FFN_SHAPES,
                *llama_cpp.FUSED,
                *llama_cpp.ATTENTION,
                "output_norm",
            }
        ),
        epsilon="layer_norm_epsilon",
    ),
)
