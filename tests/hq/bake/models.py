"""Models to bake into: a llama wide enough for every GGUF type, and what bitsandbytes saves."""

from pathlib import Path

import torch
import transformers as hf

from hq.gguf.write import write_gguf
from hq.llamacpp.library import load_library
from hq.models.checkpoint import checkpoint_identity
from tests import tiny_tokenizers
from tests.hq.gguf_checkpoints import shape

LAYERS, D_MODEL, D_FF, VOCABULARY = 2, 256, 512, 128

FILE_TYPES = {
    "F32": "LLAMA_FTYPE_ALL_F32",
    "F16": "LLAMA_FTYPE_MOSTLY_F16",
    "BF16": "LLAMA_FTYPE_MOSTLY_BF16",
    "Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0",
    "Q4_1": "LLAMA_FTYPE_MOSTLY_Q4_1",
    "Q5_0": "LLAMA_FTYPE_MOSTLY_Q5_0",
    "Q5_1": "LLAMA_FTYPE_MOSTLY_Q5_1",
    "Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
    "Q2_K": "LLAMA_FTYPE_MOSTLY_Q2_K",
    "Q3_K": "LLAMA_FTYPE_MOSTLY_Q3_K_S",
    "Q4_K": "LLAMA_FTYPE_MOSTLY_Q4_K_S",
    "Q5_K": "LLAMA_FTYPE_MOSTLY_Q5_K_S",
    "Q6_K": "LLAMA_FTYPE_MOSTLY_Q6_K",
    "IQ4_NL": "LLAMA_FTYPE_MOSTLY_IQ4_NL",
    "IQ4_XS": "LLAMA_FTYPE_MOSTLY_IQ4_XS",
}


def save(folder: Path, up: float = 1.0) -> Path:
    """A random F32 file; its up projections, which have a bias, are as large as `up` says."""
    config = hf.LlamaConfig(
        **shape(hidden_size=D_MODEL, intermediate_size=D_FF, num_hidden_layers=LAYERS),
        mlp_bias=True,
    )
    generator = torch.Generator().manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            size = 0.05 * (up if "up_proj" in name else 1.0)
            weight.copy_((centre + size * torch.randn(weight.shape, generator=generator)).half())
    checkpoint = folder / "model"
    model.half().save_pretrained(checkpoint)
    tiny_tokenizers.byte_level(VOCABULARY, every_byte=False).save_pretrained(checkpoint)
    write_gguf(checkpoint, folder / "wide.gguf", "f32", checkpoint_identity(checkpoint))
    return folder / "wide.gguf"


def quantized(source: Path, into: Path, kind: str) -> Path:
    """Every matrix in the type `kind`, by llama.cpp's own quantizer."""
    library = load_library()
    params = library.llama.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = getattr(library.llama, FILE_TYPES[kind]), True, 1
    assert library.llama.llama_model_quantize(bytes(source), bytes(into), params) == 0, (
        library.reason()
    )
    return into


def save_bitsandbytes(source: Path, into: Path, kind: str) -> Path:
    """A checkpoint quantized by bitsandbytes and saved: int8, nf4, fp4, or nested (nf4 of nf4)."""
    config = hf.BitsAndBytesConfig(
        load_in_8bit=kind == "int8",
        load_in_4bit=kind != "int8",
        bnb_4bit_quant_type="fp4" if kind == "fp4" else "nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=kind == "nested",
    )
    options = {"quantization_config": config, "dtype": torch.float32, "device_map": {"": "cpu"}}
    hf.AutoModelForCausalLM.from_pretrained(source, **options).save_pretrained(into)
    return into
