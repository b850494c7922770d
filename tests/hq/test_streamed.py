"""Streamed traces: equal to those of the model in memory, resumed by layer, refused in a sentence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hq.backends.streamed.backend import StreamedBackend
from hq.backends.streamed.passes import Passes
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.checkpoint import checkpoint_identity
from hq.neurons.cett import SPANS, Measure
from tests import decoders, tiny

Checkpoint = Callable[[str], Path]
MEASURES: tuple[Measure, ...] = ("sum", "output", "contribution")


def assert_equal(path: Path, precision: str, shared: int = 5, budget: int = 64) -> None:
    """The streamed backend gives what the model in memory gives."""
    exchanges = tiny.exchanges(shared=shared)
    identity = checkpoint_identity(path)
    with TorchBackend(path, precision, "cpu", budget, identity) as resident:
        expected = list(resident.trace(exchanges, MEASURES, SPANS))
        norms, audit, size = resident.norms, resident.audit(), resident.weight_bytes()
        ffns = list(resident.ffns())
    with StreamedBackend(path, precision, "cpu", budget, identity) as streamed:
        found = list(streamed.trace(exchanges, MEASURES, SPANS))
        assert [batch.number for batch in found] == [batch.number for batch in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)
            np.testing.assert_allclose(one.values, other.values, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(streamed.norms, norms, rtol=1e-6)
        assert streamed.audit() == audit
        assert streamed.weight_bytes() == size
        for ffn, other in zip(streamed.ffns(), ffns, strict=True):
            np.testing.assert_array_equal(ffn.down, other.down)
            np.testing.assert_array_equal(ffn.up, other.up)
            assert (ffn.bits, ffn.rounding_error) == (other.bits, other.rounding_error)


@pytest.mark.parametrize("precision", ["fp16", "nf4", "int8"])
def test_every_family_gives_the_trace_of_the_model_in_memory(
    family: str, precision: str, checkpoint: Checkpoint
) -> None:
    assert_equal(checkpoint(family), precision, shared=12)  # longer than sliding windows
