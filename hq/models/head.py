"""The output head: computes logits from last hidden states, in blocks of the vocabulary.

The logits of a large vocabulary take far more memory than the hidden states: 262,144 float32 logits
are 1 MiB per token, 640 hidden values are 2.5 KiB.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hq.errors import HQError
from hq.models.auto import is_wrapper
from hq.models.logits import Block, block_edges
from hq.models.placement import device_of, in_memory

_HEAD_FILE = "head.safetensors"
_HIDDEN_FILE = "hidden.npy"
_CAPS = ("final_logit_softcapping", "logits_soft_cap")  # names of the soft-cap in configs


@dataclass(frozen=True, slots=True)
class Head:
    """logits = cap · tanh(factor · (W·h + b) / cap), or factor · (W·h + b) if `cap` is None."""

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None = None
    factor: float = 1.0
    cap: float | None = None

    def block(
        self, hidden: Float[Tensor, "token hidden"], start: int, stop: int
    ) -> Float[Tensor, "token width"]:
        """Return the float32 logits of vocabulary entries `start` to `stop`.

        The product is computed in the dtype of `hidden`.
        """
        weight = self.weight[start:stop].to(hidden)
        bias = None if self.bias is None else self.bias[start:stop].to(hidden)
        logits = nn.functional.linear(hidden, weight, bias).float()
        if self.factor != 1:
            logits *= self.factor
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def blocks(self, hidden: Float[Tensor, "token hidden"]) -> Iterator[Block]:
        """Yield all logits, block by block."""
        for start, stop in pairwise(block_edges(len(hidden), len(self.weight))):
            yield start, self.block(hidden, start, stop)

    def logits(self, hidden: Float[Tensor, "token hidden"]) -> Float[Tensor, "token vocab"]:
        """Return all logits."""
        return self.block(hidden, 0, len(self.weight))

    def save(self, folder: Path) -> None:
        """Write the head in the narrowest dtype that represents its weights exactly."""
        tensors = {"weight": _narrowed(self.weight)}
        if self.bias is not None:
            tensors["bias"] = _narrowed(self.bias)
        settings = json.dumps({"factor": self.factor, "cap": self.cap})
        save_file(tensors, folder / _HEAD_FILE, {"head": settings})

    @classmethod
    def load(cls, folder: Path) -> "Head":
        """Read a head that `save` wrote; the weights are memory-mapped."""
        with safe_open(folder / _HEAD_FILE, framework="pt") as file:
            settings = json.loads(file.metadata()["head"])
            bias = file.get_tensor("bias") if "bias" in file.keys() else None  # noqa: SIM118
            return cls(file.get_tensor("weight"), bias, **settings)


def body_of(decoder: nn.Module) -> Any:
    """Return the part that computes last hidden states; Llama 4's decoder includes the head."""
    return decoder.model if hasattr(decoder, "lm_head") else decoder


@torch.inference_mode()
def head_of(model: nn.Module, decoder: nn.Module) -> Head:
    """Return the head of a causal language model of transformers.

    Families scale logits or hidden states under different names, so the factor is measured on four
    tokens. Raises HQError if the head then does not reproduce the model's logits, or is not a dense
    matrix.
    """
    output = model.get_output_embeddings()  # type: ignore[operator]
    with in_memory(output):
        weight, bias = getattr(output, "weight", None), getattr(output, "bias", None)
    name = type(model).__name__
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise HQError(f"The output head of {name} is not a dense matrix: hq cannot use it.")
    device = device_of(model.get_input_embeddings())  # type: ignore[operator]
    ids = torch.arange(4, device=device)[None]
    # A wrapper may count positions from 1 (PaliGemma), its language model from 0.
    positions = {"position_ids": ids} if is_wrapper(model) else {}
    states = body_of(decoder)(ids, use_cache=False, **positions).last_hidden_state[0]
    hidden = states.to(weight.device)
    expected = model(ids, use_cache=False, **positions).logits[0].to(hidden.device).float()
    if not expected.isfinite().all():
        raise HQError(
            f"The logits of {name} are not finite: the model overflows or its weights are damaged."
        )
    settings = model.config.get_text_config()  # type: ignore[operator, union-attr]
    cap = next((float(c) for key in _CAPS if (c := getattr(settings, key, None))), None)
    head = Head(weight, bias, cap=cap)
    logits = head.logits(hidden)
    if cap is None:
        largest = logits.abs().argmax()
        factor = float(expected.flatten()[largest].double() / logits.flatten()[largest].double())
        head = Head(weight, bias, factor)
        logits = logits * factor
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(hidden.dtype, 1e-5)
    if not (logits - expected).abs().max() <= tolerance * expected.abs().max():
        raise HQError(
            f"The logits of {name} are not its output head times its last hidden states, scaled or "
            f"soft-capped according to its config ({', '.join(_CAPS)}): hq cannot compute them."
        )
    return head


@dataclass(frozen=True, slots=True)
class ReferenceLogits:
    """The logits that other precisions are compared with, stored as hidden states and a head.

    `hidden` has one row per response token, text after text; the rows of text r are
    `starts[r]:starts[r + 1]`.
    """

    hidden: Float[np.ndarray, "token hidden"]
    starts: Sequence[int]
    head: Head

    def blocks(
        self,
        rows: Iterable[int],
        device: torch.device | None = None,
        tokens: slice = slice(None),
    ) -> Callable[[int, int], Float[Tensor, "token width"]]:
        """Return a function of (start, stop) that computes logits of these texts' responses.

        The logits are those of vocabulary entries `start` to `stop`, for all response tokens of the
        texts in `rows`, or a slice of these tokens.
        """
        parts = [self.hidden[self.starts[row] : self.starts[row + 1]] for row in rows]
        hidden = torch.from_numpy(np.concatenate(parts)[tokens]).to(device)
        return partial(self.head.block, hidden)

    def save(self, folder: Path) -> None:
        """Write the hidden states and the head."""
        np.save(folder / _HIDDEN_FILE, self.hidden)
        self.head.save(folder)

    @classmethod
    def load(cls, folder: Path, lengths: Sequence[int]) -> "ReferenceLogits":
        """Read what `save` wrote, for texts with these numbers of response tokens.

        Raises HQError if files are missing or damaged, or belong to other texts.
        """
        starts = np.cumsum([0, *lengths]).tolist()
        try:
            hidden = np.load(folder / _HIDDEN_FILE, mmap_mode="r", allow_pickle=False)
            head = Head.load(folder)
        except (OSError, ValueError, EOFError, SafetensorError) as error:
            raise HQError(
                f"{folder} lacks the reference's hidden states and head, or they are damaged: "
                "compute them again with --fresh."
            ) from error
        if len(hidden) != starts[-1]:
            raise HQError(
                f"{folder} holds {len(hidden)} tokens of a reference, not {starts[-1]}: "
                "compute them again with --fresh."
            )
        return cls(hidden, starts, head)


def _narrowed(weight: Tensor) -> Tensor:
    """Return the tensor in a 16-bit dtype that represents every value exactly, else unchanged."""
    if weight.element_size() > 2:
        for dtype in (torch.float16, torch.bfloat16):
            narrow = weight.to(dtype)
            # In pieces: comparing all of it would need another float32 copy.
            pieces = (slice(begin, begin + 4096) for begin in range(0, len(weight), 4096))
            if all(torch.equal(weight[p], narrow[p].to(weight.dtype)) for p in pieces):
                return narrow.contiguous().cpu()
    return weight.contiguous().cpu()
