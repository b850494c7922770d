"""Outputs of a backend as arrays, and their distance."""

import numpy as np

from hq.backends.base import Backend
from hq.neurons.prompt_response import PromptResponse


def logits(backend: Backend, exchanges: list[PromptResponse]) -> np.ndarray:
    """[token of all responses, vocab]."""
    actual = dict(backend.logits(exchanges))
    return np.concatenate([actual[row] for row in range(len(exchanges))])


def off(values: np.ndarray, expected: np.ndarray) -> float:
    """Largest relative error of a vector along the last axis."""
    error = np.linalg.norm(values - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    return float(error.max())
