"""Stage `uncertainty`: resumed after a kill, and an exact divergence from the reference."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.special import log_softmax

from harness.stages import uncertainty
from harness.store.progress import Task
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from tests import tiny

ANSWERS = tiny.exchanges(8, seed=1)
TEXTS = tiny.exchanges(7, seed=2)


class Dies(Exception):
    """In place of a kill."""


class Mortal:
    """A backend that dies before its batch number `left`, over all calls."""

    def __init__(self, inner: TorchBackend, left: int = 1 << 16) -> None:
        self._inner, self.left, self.computed = inner, left, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def predictions(self, *arguments: object) -> Iterator[object]:
        for batch in self._inner.predictions(*arguments):
            if not self.left:
                raise Dies
            self.left -= 1
            self.computed += 1
            yield batch


@pytest.fixture(scope="module")
def backends(checkpoint) -> Iterator[dict[str, TorchBackend]]:
    opened = {
        precision: TorchBackend(checkpoint("llama"), precision, device="cpu", token_budget=48)
        for precision in ("fp16", "nf4")
    }
    yield opened
    for backend in opened.values():
        backend.close()


def task() -> Task:
    return Task(None, "", 0, "texts")


def measure(folder, backend, reference=None) -> Task:
    folder.mkdir(exist_ok=True)
    watched = task()
    uncertainty.measure(folder, backend, ANSWERS, TEXTS, reference, watched)
    return watched


def whole(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "speed.json"}


def test_killed_before_any_batch_it_ends_with_the_same_bytes(backends, tmp_path):
    expected, batches = {}, {}
    for precision, backend in backends.items():
        counted = Mortal(backend)
        reference = None if precision == "fp16" else tmp_path / "fp16"
        watched = measure(tmp_path / precision, counted, reference)
        assert watched.done == len(ANSWERS) + len(TEXTS)
        expected[precision] = whole(tmp_path / precision)
        batches[precision] = counted.computed
    assert batches["fp16"] > 4  # of answers and of texts
    assert set(expected["fp16"]) == {"uncertainty.npz", "hidden.npy", "head.safetensors"}
    assert set(expected["nf4"]) == {"uncertainty.npz"}
    for precision, backend in backends.items():
        reference = None if precision == "fp16" else tmp_path / "fp16"
        for left in range(batches[precision]):
            folder = tmp_path / f"{precision}-{left}"
            with pytest.raises(Dies):
                measure(folder, Mortal(backend, left), reference)
            again = Mortal(backend)
            watched = measure(folder, again, reference)
            assert again.computed == batches[precision] - left  # and no batch twice
            assert watched.done == len(ANSWERS) + len(TEXTS)
            assert whole(folder) == expected[precision]


def test_the_divergence_is_that_of_the_whole_distributions(backends, tmp_path):
    measure(tmp_path / "fp16", backends["fp16"])
    measure(tmp_path / "nf4", backends["nf4"], tmp_path / "fp16")
    found = uncertainty.read(tmp_path / "nf4")
    log_probs = {
        precision: {
            row: log_softmax(logits.astype(np.float64), axis=-1)
            for row, logits in backend.logits(TEXTS)
        }
        for precision, backend in backends.items()
    }
    for row, text in enumerate(TEXTS):
        p, q = log_probs["fp16"][row], log_probs["nf4"][row]
        assert found.kl[row] == pytest.approx((np.exp(p) * (p - q)).sum(axis=-1).mean(), rel=1e-4)
        loss = -q[np.arange(len(q)), text.response].mean()
        assert found.nll[row] == pytest.approx(loss, rel=1e-5)
    assert not uncertainty.read(tmp_path / "fp16").kl.any()
    for row, logits in backends["nf4"].logits(ANSWERS):
        q = log_softmax(logits.astype(np.float64), axis=-1)
        entropy = -(np.exp(q) * q).sum(axis=-1).mean()
        assert found.entropy[row] == pytest.approx(entropy, rel=1e-5)


def test_a_reference_of_another_version_is_refused_before_anything_runs(backends, tmp_path):
    (tmp_path / "old").mkdir()
    np.save(tmp_path / "old" / "log_probs.npy", np.zeros((3, 2), np.float16))
    untouched = Mortal(backends["nf4"], 0)
    with pytest.raises(HQError, match="--fresh"):
        measure(tmp_path / "new", untouched, tmp_path / "old")
