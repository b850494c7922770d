"""Traces on disk: written in parts, resumed, and refused where they are not what they should be."""

import numpy as np
import pytest

from hq.backends.base import TraceBatch
from hq.errors import HQError
from hq.neurons import ModelIdentity
from hq.traces import TraceInfo, Traces, TraceWriter

MODEL = ModelIdentity(name="m", fingerprint="f", architecture="llama", n_layers=2, d_ff=3)
NORMS = np.ones((2, 3), dtype=np.float32)


def info(**changes):
    stated = {
        "model": MODEL,
        "precision": "fp16",
        "compute": "float32",
        "n": 4,
        "exchanges": "e",
        "measures": ("sum", "contribution"),
        "spans": ("answer",),
        "dtype": "float32",
        "weight_bytes": 1,
        "audit": (),
    }
    return TraceInfo(**stated | changes)


def batch(number, rows):
    rows = np.array(rows)
    values = np.arange(4 * 2 * 6, dtype=np.float32).reshape(4, 2, 1, 2, 3)[rows]
    return TraceBatch(number, rows, values)


def test_rows_come_back_where_they_belong(tmp_path):
    writer = TraceWriter(tmp_path, info())
    for number, rows in enumerate([[2, 0], [3, 1]]):
        writer.write(batch(number, rows))
    writer.close(NORMS)
    traces = Traces.open(tmp_path)
    np.testing.assert_array_equal(traces.matrix("sum", "answer")[:, 0], [0, 12, 24, 36])
    np.testing.assert_array_equal(traces.matrix("contribution", "answer")[:, 5], [11, 23, 35, 47])
    np.testing.assert_array_equal(traces.norms, NORMS)


def test_a_trace_that_was_cut_off_goes_on(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        TraceWriter(folder, info()).write(batch(0, [0, 1]))
    again = TraceWriter(cut, info())
    assert again.done == {0}
    for writer in (again, TraceWriter(whole, info())):
        writer.write(batch(1, [2, 3]))
        writer.close(NORMS)
    assert {p.name for p in cut.iterdir()} == {p.name for p in whole.iterdir()}
    for path in whole.iterdir():
        assert path.read_bytes() == (cut / path.name).read_bytes()


@pytest.mark.parametrize("changes", [{"precision": "nf4"}, {"exchanges": "other"}, {"n": 5}])
def test_the_beginning_of_another_trace_is_refused(changes, tmp_path):
    TraceWriter(tmp_path, info()).write(batch(0, [0, 1]))
    with pytest.raises(HQError, match="beginning of another trace"):
        TraceWriter(tmp_path, info(**changes))


def test_an_array_that_a_kill_left_short_is_made_again(tmp_path, monkeypatch):
    def killed(path, **_):
        path.write_bytes(b"\x93NUMPY")
        raise KeyError

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr("numpy.lib.format.open_memmap", killed)
        TraceWriter(tmp_path, info())
    TraceWriter(tmp_path, info()).write(batch(0, [0, 1]))


def test_an_unfinished_trace_cannot_be_opened(tmp_path):
    TraceWriter(tmp_path, info()).write(batch(0, [0, 1]))
    with pytest.raises(HQError, match="no finished trace"):
        Traces.open(tmp_path)


def test_what_was_not_traced_is_named(tmp_path):
    TraceWriter(tmp_path, info()).close(NORMS)
    with pytest.raises(HQError, match="--measures output --spans answer"):
        Traces.open(tmp_path).matrix("output", "answer")


def test_float16_is_kept_as_such(tmp_path):
    writer = TraceWriter(tmp_path, info(dtype="float16"))
    writer.write(batch(0, [0, 1, 2, 3]))
    writer.close(NORMS)
    assert Traces.open(tmp_path).matrix("sum", "answer").dtype == np.float16
