"""Stage `uncertainty`: what the logits alone say, at one precision.

Entropy of the answers' tokens, which is a baseline for detection; and on held-out text the loss,
and the divergence from the reference precision.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import log_softmax

from harness.progress import Task
from harness.store import Stage
from hq.backends.base import Backend, Exchange
from hq.backends.batching import shared_prefix
from hq.stats import Estimate, bootstrap

STAGE = Stage("uncertainty", sources=("hq.backends.opening",))
LOG_PROBS_FILE = "log_probs.npy"


class Uncertainty(NamedTuple):
    """What a finished stage holds."""

    entropy: Float[np.ndarray, " sample"]  # mean over the answer's tokens, in nats
    nll: Float[np.ndarray, " text"]  # mean over the text's tokens, in nats
    kl: Float[np.ndarray, " text"]  # mean KL(reference ‖ this) over the text's tokens, in nats
    tokens: Float[np.ndarray, " text"]  # how many tokens each text has
    tokens_per_second: float  # prompt tokens read, on this machine


def measure(
    folder: Path,
    backend: Backend,
    answers: Sequence[Exchange],
    texts: Sequence[Exchange],
    reference: Path | None,
    task: Task,
) -> None:
    """Writes the stage's arrays; `reference` is the folder of the reference, None for itself."""
    entropy = np.zeros(len(answers))
    started = time.perf_counter()
    for row, logits in backend.logits(answers):
        log_probs = log_softmax(logits, axis=-1)
        entropy[row] = -(np.exp(log_probs) * log_probs).sum(axis=-1).mean()
        task.advance(1)
    seconds = time.perf_counter() - started
    nll, kl = _held_out(folder, backend, texts, reference, task)
    np.savez(
        folder / "uncertainty.npz",
        entropy=entropy,
        nll=nll,
        kl=kl,
        tokens=np.array([len(text.response) for text in texts], dtype=float),
    )
    prefix = len(shared_prefix([answer.prompt for answer in answers]))  # read once
    read = prefix + sum(len(answer) - prefix for answer in answers)
    speed = {"tokens_per_second": read / seconds}
    (folder / "speed.json").write_text(json.dumps(speed), encoding="utf-8")


def _held_out(
    folder: Path, backend: Backend, texts: Sequence[Exchange], reference: Path | None, task: Task
) -> tuple[Float[np.ndarray, " text"], Float[np.ndarray, " text"]]:
    """Mean loss and divergence of each text; the reference keeps its log-probabilities."""
    starts = np.cumsum([0, *(len(text.response) for text in texts)])
    theirs = None if reference is None else np.load(reference / LOG_PROBS_FILE, mmap_mode="r")
    kept: list[Float[np.ndarray, "token vocab"]] = [np.empty(0)] * len(texts)
    nll, kl = np.zeros(len(texts)), np.zeros(len(texts))
    for row, logits in backend.logits(texts):
        log_probs = log_softmax(logits, axis=-1)
        nll[row] = loss(log_probs, texts[row])
        if theirs is None:
            kept[row] = log_probs.astype(np.float16)
        else:
            p = theirs[starts[row] : starts[row + 1]].astype(np.float32)
            kl[row] = (np.exp(p) * (p - log_probs)).sum(axis=-1).mean()
        task.advance(1)
    if theirs is None:
        np.save(folder / LOG_PROBS_FILE, np.concatenate(kept))
    return nll, kl


def loss(log_probs: Float[np.ndarray, "token vocab"], text: Exchange) -> float:
    """Mean loss a token of a text's response, in nats."""
    return -float(log_probs[np.arange(len(text.response)), list(text.response)].mean())


def perplexity(
    nll: Float[np.ndarray, " text"],
    tokens: Float[np.ndarray, " text"],
    seed: int,
    replicates: int,
    groups: Shaped[np.ndarray, " text"] | None,
) -> Estimate:
    """Exp of the mean loss a token, from each text's mean; resamples texts, or groups of them."""
    share = tokens / tokens.sum()
    return bootstrap(
        lambda w: np.exp(w @ (nll * share) / (w @ share)),
        len(share),
        seed,
        replicates,
        groups,
        "perplexity",
    )


def read(folder: Path) -> Uncertainty:
    """The arrays of a finished stage."""
    arrays = np.load(folder / "uncertainty.npz", allow_pickle=False)
    speed = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
    return Uncertainty(
        arrays["entropy"], arrays["nll"], arrays["kl"], arrays["tokens"], speed["tokens_per_second"]
    )
