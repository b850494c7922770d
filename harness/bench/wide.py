"""Memory of tracing at a 7B model's layer count and width, on a model that costs almost nothing.

Its projections have rank 16, so it needs neither 26 GB nor hours.
What a trace allocates depends on shapes alone, and those are Llama-2 7B's.
"""

import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hq.backends.transformers.backend import TorchBackend
from hq.neurons.cett import Measure, Span
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.precisions import PRECISIONS
from hq.precisions.dense import FP16
from hq.tracing.traces import TraceWriter, describe

_RANK = 16
_TEXTS = 256
_LONG = 8  # of them, 8 × 256 tokens, a whole batch
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
    "peak of resident memory less what the loaded model has"
)


def peak_extra_mib(seed: int, config: dict[str, int] = _CONFIG, texts: int = _TEXTS) -> float:
    """MiB that a process of its own gains while it streams traces to disk."""
    spawned = get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawned) as pool:
        return pool.submit(_stream, seed, config, texts).result()


def _stream(seed: int, config: dict[str, int], texts: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backend = _backend(folder, config)
        before: float = psutil.Process().memory_info().rss / 2**20
        exchanges = _exchanges(seed, texts, config["vocab_size"])
        info = describe(backend, exchanges, _MEASURES, _SPANS)
        writer = TraceWriter(folder / "traces", info)
        for batch in backend.trace(exchanges, _MEASURES, _SPANS):
            writer.write(batch)
        writer.close(backend.norms)
        return _peak_mib() - before


def _exchanges(seed: int, count: int, vocabulary: int) -> list[PromptResponse]:
    """Random texts: short ones fill batches by their rows, the long ones by their tokens."""
    rng = np.random.default_rng(seed)

    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(vocabulary, size=rng.integers(low, high)).tolist())

    long = [PromptResponse(draw(200, 210), draw(40, 46)) for _ in range(_LONG)]
    return [PromptResponse(draw(8, 14), draw(2, 6)) for _ in range(count - _LONG)] + long


def _peak_mib() -> float:
    """The most memory that this process has had so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss begins with that of the parent process
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
    """The real backend; only the loading of weights is replaced."""
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


class Product(nn.Module):
    """x ↦ x · A · B, in place of a linear map of the same shape."""

    def __init__(self, first: Float[Tensor, "inputs rank"], last: Float[Tensor, "rank outputs"]):
        super().__init__()
        self.factors = first, last
        # Tells the shape to whoever audits, and takes no memory.
        self.weight = first.new_zeros(()).expand(last.shape[1], first.shape[0])

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Two thin products."""
        first, last = self.factors
        return x @ first @ last


class LowRank(FP16):
    """A precision, as far as the backend can tell: random factors in place of weights."""

    name = "low-rank"

    def load(self, path: Path, device: torch.device) -> PreTrainedModel:
        """A Llama of the shape that config.json in `path` tells."""
        config = LlamaConfig.from_pretrained(path)
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, linear in list(part.named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(part, name, _product(linear, device))
        model.to_empty(device=device)  # norms and embeddings
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=1.0)
        model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
        loaded: PreTrainedModel = model.eval().requires_grad_(False)
        return loaded

    def is_precision_of(self, module: nn.Module) -> bool:
        """Whether it is one of its own."""
        return isinstance(module, Product)

    def dense(self, module: nn.Module) -> Float[Tensor, "outputs inputs"]:
        """The whole matrix, as a quantized weight would be dequantized."""
        assert isinstance(module, Product)
        first, last = module.factors
        dense: Tensor = (first @ last).T
        return dense


def _product(linear: nn.Linear, device: torch.device) -> Product:
    generator = torch.Generator(device).manual_seed(0)

    def draw(rows: int, columns: int) -> Tensor:
        drawn = torch.randn(rows, columns, generator=generator, device=device)
        return drawn.div_(rows**0.5)

    return Product(draw(linear.in_features, _RANK), draw(_RANK, linear.out_features))
