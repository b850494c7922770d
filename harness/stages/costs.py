"""Stage `costs`: what scaling neurons does to four-way choices and to the loss on held-out text."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

from harness.progress import Task
from harness.stages.uncertainty import loss
from harness.store import Stage
from hq.backends.base import Backend, Exchange

STAGE = Stage("costs", sources=("hq.backends.opening",))
_FILE = "costs.npz"


class Costs(NamedTuple):
    """What a finished stage holds."""

    picks: Int[np.ndarray, " choice"]  # the likeliest of the four letters
    nll: Float[np.ndarray, " text"]  # mean over the text's tokens, in nats


def measure(
    folder: Path,
    backend: Backend,
    choices: Sequence[tuple[int, ...]],
    letters: Sequence[int],
    texts: Sequence[Exchange],
    task: Task,
) -> None:
    """Reads prompts of choices, whose answers are one of the `letters` (token ids), and texts."""
    picks = np.zeros(len(choices), dtype=np.int64)
    for row, logits in backend.logits([Exchange(ids, (letters[0],)) for ids in choices]):
        picks[row] = int(np.argmax(logits[0, list(letters)]))
        task.advance(1)
    nll = np.zeros(len(texts))
    for row, logits in backend.logits(texts):
        nll[row] = loss(log_softmax(logits, axis=-1), texts[row])
        task.advance(1)
    np.savez(folder / _FILE, picks=picks, nll=nll)


def read(folder: Path) -> Costs:
    """The arrays of a finished stage."""
    arrays = np.load(folder / _FILE, allow_pickle=False)
    return Costs(arrays["picks"], arrays["nll"])
