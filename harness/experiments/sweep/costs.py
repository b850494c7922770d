"""Costs of scaling neurons: four-way choices, and the loss on held-out text."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from harness.store.progress import Task
from hq.backends.base import Backend
from hq.neurons.prompt_response import PromptResponse

_FILE = "costs.npz"


class Costs(NamedTuple):
    """The output of the stage."""

    picks: Int[np.ndarray, " choice"]  # index of the most likely letter
    nll: Float[np.ndarray, " text"]  # mean over the text's tokens, in nats


def measure(
    folder: Path,
    backend: Backend,
    choices: Sequence[tuple[int, ...]],
    letters: Sequence[int],
    texts: Sequence[PromptResponse],
    task: Task,
) -> None:
    """Compute the most likely of the `letters` (token ids) per choice, and the loss per text."""
    picks = np.zeros(len(choices), dtype=np.int64)
    for row, logits in backend.logits([PromptResponse(ids, (letters[0],)) for ids in choices]):
        picks[row] = int(np.argmax(logits[0, list(letters)]))
        task.advance(1)
    nll = np.zeros(len(texts))
    for batch in backend.predictions(texts):
        nll[batch.rows] = -batch.means(batch.log_prob)
        task.advance(len(batch.rows))
    np.savez(folder / _FILE, picks=picks, nll=nll)


def read(folder: Path) -> Costs:
    """Read the output of a finished node."""
    arrays = np.load(folder / _FILE, allow_pickle=False)
    return Costs(arrays["picks"], arrays["nll"])
