"""Traces on disk: written in parts, resumed, and refused where they are not what they should be."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from hq.backends.base import TraceBatch
from hq.errors import HQError
from hq.neurons.neuron_set import ModelIdentity
from hq.tracing.traces import TraceInfo, Traces, TraceWriter

MODEL = ModelIdentity(name="m", fingerprint="f", architecture="llama", n_layers=2, d_ff=3)
NORMS = np.ones(6, dtype=np.float32)


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
    values = np.arange(4 * 2 * 6, dtype=np.float32).reshape(4, 2, 1, 6)[rows]
    return TraceBatch(number, rows, values, ("sum", "contribution"), ("answer",), MODEL, "fp16")


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


def test_traces_say_what_they_are(tmp_path):
    writer = TraceWriter(tmp_path, info(precision="nf4", missing=(2,), unmatched=(2, 3)))
    writer.write(batch(0, [0, 1, 2, 3]))
    writer.close(NORMS)
    traces = Traces.open(tmp_path)
    features = traces.features("contribution", "answer")
    assert (features.measure, features.span) == ("contribution", "answer")
    assert (features.model, features.precision, features.missing) == (MODEL, "nf4", {2})
    np.testing.assert_array_equal(features.values, traces.matrix("contribution", "answer"))
    assert traces.info.unmatched == (2, 3)


def test_traces_of_an_older_hq_lack_no_neuron(tmp_path):
    TraceWriter(tmp_path, info()).close(NORMS)
    path = tmp_path / "trace.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    del stated["missing"], stated["unmatched"]
    path.write_text(json.dumps(stated), encoding="utf-8")
    assert Traces.open(tmp_path).features("sum", "answer").missing == frozenset()


def test_values_that_the_file_cannot_hold_are_refused(tmp_path):
    """Checked as they are stored: float64 holds what float32 turns into infinity."""
    huge = np.full((1, 2, 1, 6), 1e39)
    whole = batch(0, [0])
    with pytest.raises(HQError, match="not finite"), np.errstate(over="ignore"):
        TraceWriter(tmp_path, info()).write(replace(whole, values=huge))
    assert not (tmp_path / "batches.txt").exists()


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_traces_are_float32(dtype):
    with pytest.raises(ValueError, match="float32"):
        info(dtype=dtype)


def test_a_writer_keeps_no_file_open(tmp_path):
    writer = TraceWriter(tmp_path, info())
    writer.write(batch(0, [0, 1]))
    opened = [Path(file.path) for file in psutil.Process().open_files()]
    assert not [path for path in opened if tmp_path in path.parents]
    shutil.rmtree(tmp_path)


def test_a_write_that_fails_is_not_noted(tmp_path):
    """What the operating system did not take raises: the batch is traced again."""
    writer = TraceWriter(tmp_path, info())
    (tmp_path / "contribution.answer.npy").unlink()
    with pytest.raises(OSError, match="contribution"):
        writer.write(batch(0, [0, 1]))
    assert writer.done == frozenset()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.hq.test_traces import batch, info
from hq.tracing.traces import TraceWriter
writer = TraceWriter(Path(sys.argv[1]), info())
writer.write(batch(0, [2, 0]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_process_has_written_what_it_noted(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL
    writer = TraceWriter(tmp_path, info())
    assert writer.done == {0}
    writer.write(batch(1, [3, 1]))
    writer.close(NORMS)
    np.testing.assert_array_equal(
        Traces.open(tmp_path).matrix("sum", "answer")[:, 0], [0, 12, 24, 36]
    )
