"""What a streamed trace costs, from the shape of a model: memory, disk, arithmetic and time.

Time is that of the slower of reading and computing, as a thread reads the next layer while one
computes, plus the time to make and dequantize quantized weights. GPU rates are nominal.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import PretrainedConfig

from hq.models.architectures import Architecture

_BASE = 600 << 20  # bytes of a process with torch and transformers
_TOKENS = 2048  # of a batch
_WIDE = 5  # arrays of tokens × d_ff that exist at once while a layer is traced
_STORED = 2  # bytes of a stored weight


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that determine what a dense decoder costs."""

    layers: int
    d_model: int
    d_ff: int
    vocabulary: int
    attention: int  # width of the queries: heads × width of a head
    keys: int  # width of the keys, and of the values
    gated: bool = True

    @classmethod
    def of(cls, config: PretrainedConfig, family: Architecture) -> Self:
        """The shape of a checkpoint, from its text config."""
        space: Any = family.space(config)
        heads = int(config.num_attention_heads)
        head = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return cls(
            layers=space.n_layers,
            d_model=int(config.hidden_size),
            d_ff=max(block.width for block in space.blocks),
            vocabulary=int(config.vocab_size),
            attention=heads * head,
            keys=head * int(getattr(config, "num_key_value_heads", None) or heads),
            gated=family.gated,
        )

    @property
    def layer(self) -> int:
        """Weights of a layer's projections."""
        of_attention = 2 * self.d_model * (self.attention + self.keys)
        return of_attention + (2 + self.gated) * self.d_model * self.d_ff

    @property
    def largest(self) -> int:
        """Weights of the largest projection."""
        return self.d_model * max(self.d_ff, self.attention)

    @property
    def weights(self) -> int:
        """Weights of the model, embeddings and output head included."""
        return self.layers * self.layer + 2 * self.vocabulary * self.d_model


LLAMA_70B = Shape(80, 8192, 28672, 128_256, 8192, 1024)


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates of a machine."""

    name: str
    device: str  # cpu or cuda
    disk: float  # bytes read per second
    flops: float  # of a matrix product, per second
    quantized: float  # weights made per second at a quantized precision
    dequantized: float  # weights dequantized, or converted to the compute type, per second
    copied: float = float("inf")  # bytes per second to the device


GPU_24 = Machine("one 24 GB GPU", "cuda", 1e9, 28e12, 5e8, 5e10, 12e9)
GPU_80 = Machine("one 80 GB GPU", "cuda", 1e9, 125e12, 1e9, 1e11, 25e9)


def this_cpu(disk: float = 1e9) -> Machine:
    """This machine's CPU, with the speed of a matrix product measured in a second.

    The time of the processor is measured, so that other work on the machine does not count.
    """
    a = torch.randn(512, 2048)
    b = torch.randn(4096, 2048)
    torch.nn.functional.linear(a, b)
    started, done = time.process_time(), 0
    while (spent := time.process_time() - started) < 0.5:
        torch.nn.functional.linear(a, b)
        done += 1
    rate = done * 2 * a.numel() * len(b) / spent * torch.get_num_threads()
    return Machine("this CPU", "cpu", disk, rate, 3e7, 5e8)


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one pass."""

    memory: int  # peak bytes of the process
    device_memory: int  # peak bytes on the GPU; 0 on a CPU
    read: int  # bytes read from the checkpoint
    states: int  # bytes of the files with hidden states
    traces: int  # bytes of traces that are written
    flops: float
    products: float  # seconds of the matrix products alone
    seconds: float


def cost(
    shape: Shape,
    precisions: Sequence[str],
    samples: int,
    tokens: float,
    machine: Machine,
    arrays: int = 1,
) -> Cost:
    """The cost of tracing samples at some precisions in one pass.

    Args:
        shape: Sizes of the model.
        precisions: Names; all but fp16 and bf16 are quantized.
        samples: Number of texts.
        tokens: Tokens of a text, without a prefix that all share.
        machine: Rates.
        arrays: Measures times spans that are stored.
    """
    total, on_cpu = samples * tokens, machine.device == "cpu"
    quantized = [name for name in precisions if name not in ("fp16", "bf16")]
    wide = 4 if on_cpu else 2  # bytes of the arithmetic
    batches = max(1.0, total / _TOKENS)
    # Made: all of a layer in the compute type, or one byte per weight and one dense projection.
    made = wide * shape.layer
    if len(quantized) == len(precisions):
        made = shape.layer + 2 * wide * shape.largest
    activations = int(min(total, _TOKENS) * wide * _WIDE * shape.d_ff)
    waiting = 2 * _STORED * shape.layer  # the layer that is used, and the next one
    working = made + wide * shape.largest + activations
    read = shape.layers * shape.layer * _STORED
    flops = len(precisions) * shape.layers * 2.0 * total * (shape.layer + tokens * shape.attention)
    all_weights = shape.layers * shape.layer
    computing = (
        flops / machine.flops
        + len(quantized) * all_weights / machine.quantized
        + len(quantized) * batches * all_weights / machine.dequantized
        + (len(precisions) - len(quantized)) * all_weights / machine.dequantized
        + len(precisions) * _STORED * all_weights / machine.copied
    )
    return Cost(
        memory=_BASE + waiting + (working if on_cpu else 0),
        device_memory=0 if on_cpu else working,
        read=read,
        states=int(len(precisions) * 2 * wide * total * shape.d_model),
        traces=len(precisions) * arrays * 4 * samples * shape.layers * shape.d_ff,
        flops=flops,
        products=flops / machine.flops,
        seconds=max(read / machine.disk, computing),
    )
