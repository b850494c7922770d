"""Memory of tracing at the layer count and width of Llama-2 7B, on a cheap low-rank model.

What a trace allocates depends on shapes alone. The model has those of Llama-2 7B, but its
projections have rank 16, so that it does not need 26 GB.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from harness.bench.base import in_new_process, random_texts
from hq.backends.transformers.backend import TorchBackend
from hq.neurons.cett import Measure, Span
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.precisions import PRECISIONS
from hq.precisions.dense import FP16
from hq.tracing.traces import TraceWriter, describe

_RANK = 16
_TEXTS = 256
_LONG = 8  # of these; 8 × 256 tokens fill a batch
_MEASURES: tuple[Measure, ...] = ("sum", "contribution")
_SPANS: tuple[Span, ...] = ("answer", "other")
_CONFIG = {
    "vocab_size": 1000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
NOTE = (
    f"32 layers of 11008, {_TEXTS} texts, {'+'.join(_MEASURES)} over {'+'.join(_SPANS)}, to disk: "
    "peak resident memory minus that of the loaded model"
)


def peak_extra_mib(seed: int, config: dict[str, int] = _CONFIG, texts: int = _TEXTS) -> float:
    """Return the MiB that a new process allocates while it streams traces to disk."""
    return in_new_process(_extra_mib_of_trace, seed, config, texts)


def _extra_mib_of_trace(seed: int, config: dict[str, int], texts: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backend = _backend(folder, config)
        before: float = psutil.Process().memory_info().rss / 2**20
        pairs = _texts(seed, texts, config["vocab_size"])
        info = describe(backend, pairs, _MEASURES, _SPANS)
        writer = TraceWriter(folder / "traces", info)
        for batch in backend.trace(pairs, _MEASURES, _SPANS):
            writer.write(batch)
        writer.close(backend.norms)
        return peak_mib() - before


def _texts(seed: int, count: int, vocabulary: int) -> list[PromptResponse]:
    """Random texts: short ones fill batches by rows, long ones by tokens."""
    rng = np.random.default_rng(seed)
    long = random_texts(rng, _LONG, vocabulary, (200, 210), (40, 46))
    return random_texts(rng, count - _LONG, vocabulary, (8, 14), (2, 6)) + long


def peak_mib() -> float:
    """The peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss starts at the parent process's value
        (line,) = (
            row
            for row in status.read_text(encoding="utf-8").splitlines()
            if row.startswith("VmHWM")
        )
        return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # macOS: in bytes

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _backend(folder: Path, config: dict[str, int]) -> TorchBackend:
    """The torch backend; only the loading of weights is replaced."""
    LlamaConfig(**config).save_pretrained(folder)
    PRECISIONS.add(LowRank.name, LowRank())
    identity = ModelIdentity(
        name=LowRank.name,
        fingerprint="0" * 16,
        architecture="llama",
        n_layers=config["num_hidden_layers"],
        d_ff=config["intermediate_size"],
    )
    return TorchBackend(folder, LowRank.name, device="cpu", model_identity=identity)


class LowRankLinear(nn.Module):
    """x ↦ x · A · B, which replaces a linear layer of the same shape."""

    def __init__(self, first: Float[Tensor, "inputs rank"], last: Float[Tensor, "rank outputs"]):
        super().__init__()
        self.factors = first, last
        # Has the shape that an audit reads, without memory.
        self.weight = first.new_zeros(()).expand(last.shape[1], first.shape[0])

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Multiply by both factors."""
        first, last = self.factors
        return x @ first @ last


class LowRank(FP16):
    """A precision that loads random low-rank factors instead of weights."""

    name = "low-rank"

    def load(self, path: Path, device: torch.device) -> PreTrainedModel:
        """Return a Llama of the shape in `path`/config.json."""
        config = LlamaConfig.from_pretrained(path)
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, linear in list(part.named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(part, name, _low_rank(linear, device))
        model.to_empty(device=device)  # norms and embeddings
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=1.0)
        model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
        loaded: PreTrainedModel = model.eval().requires_grad_(False)
        return loaded

    def is_precision_of(self, module: nn.Module) -> bool:
        """Return whether the module is a low-rank layer."""
        return isinstance(module, LowRankLinear)

    def dense(self, module: nn.Module) -> Float[Tensor, "outputs inputs"]:
        """Return the matrix of a low-rank layer."""
        assert isinstance(module, LowRankLinear)
        first, last = module.factors
        dense: Tensor = (first @ last).T
        return dense


def _low_rank(linear: nn.Linear, device: torch.device) -> LowRankLinear:
    generator = torch.Generator(device).manual_seed(0)

    def draw(rows: int, columns: int) -> Tensor:
        drawn = torch.randn(rows, columns, generator=generator, device=device)
        return drawn.div_(rows**0.5)

    return LowRankLinear(draw(linear.in_features, _RANK), draw(_RANK, linear.out_features))
