"""What Python passes to machine code is checked, whether or not assertions are enabled."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.llamacpp.library import load_library
from hq.llamacpp.observer import GraphObserver
from tests import tiny
from tests.hq import llama_misuse

ROOT = Path(__file__).parents[2]
GGUF = Callable[..., Path]
BYTES = 1024  # more than a ggml_tensor has


@pytest.fixture(scope="module")
def messages(gguf: GGUF) -> dict[str, str]:
    """The message of each misuse."""
    return llama_misuse.answers(gguf("llama"))


def test_every_misuse_is_a_sentence(messages):
    checked = re.compile(
        "A decode takes|A context takes|llama.cpp's callback cannot take|The measures are|.* has no token|A text has"
    )
    assert [name for name, message in messages.items() if not checked.match(message)] == []


def test_no_check_is_an_assertion():
    """`python -O` removes assertions."""
    paths = sorted((ROOT / "hq/llamacpp").glob("*.py"))
    assert paths
    for path in paths:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not [n.lineno for n in nodes if isinstance(n, ast.Assert)], path


@pytest.mark.slow  # everything that is imported is compiled again
def test_messages_are_the_same_without_assertions(messages, gguf):
    command = (sys.executable, "-O", "-m", "tests.hq.llama_misuse", str(gguf("llama")))
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == messages


# --- the callback itself, called with tensors that the test makes


class Tensor:
    """A ggml_tensor of float32 rows, in memory that NumPy owns."""

    def __init__(self, name: str, rows: int, width: int, on_host: bool = True) -> None:
        layout = load_library().layout
        self.values = np.ones((rows, width), dtype=np.float32)
        self.words = np.zeros(BYTES // 8, dtype=np.int64)
        self.words[layout.ne // 8 : layout.ne // 8 + 4] = (width, rows, 1, 1)
        self.words[layout.nb // 8 : layout.nb // 8 + 2] = (4, 4 * width)
        self.words[layout.data // 8] = self.values.ctypes.data
        self.words.view(np.uint8)[layout.name : layout.name + len(name)] = list(name.encode())
        # Every word of the buffer, its type included, is a pointer to zeros, so it is not marked as
        # host memory.
        self.zeros = np.zeros(BYTES // 8, dtype=np.int64)
        self.buffer = np.full(BYTES // 8, self.zeros.ctypes.data, dtype=np.int64)
        self.words[layout.buffer // 8] = 0 if on_host else self.buffer.ctypes.data

    @property
    def address(self) -> int:
        return self.words.ctypes.data


@pytest.fixture
def observer(gguf: GGUF) -> GraphObserver:
    """An observer for four tokens of the tiny model."""
    with LlamaBackend(gguf("llama"), "gguf-f32") as backend:
        return GraphObserver(backend._nodes, backend.file.norms, 4, backend.scales)


def called(observer: GraphObserver, tensor: Tensor) -> None:
    """Call the callback with a tensor that has been computed."""
    from hq.llamacpp import callback

    callback._callback.ctypes(tensor.address, False, observer.attach())
    observer.end()


@pytest.mark.parametrize(
    ("rows", "width", "on_host", "message"),
    [
        (3, tiny.D_FF - 4, True, "not dense float32 with the width of the FFN"),
        (2, tiny.D_FF, True, "another number of rows than the decode has tokens"),
        (100, tiny.D_FF, True, "another number of rows than the decode has tokens"),
        (3, tiny.D_FF, False, "outside host memory"),
    ],
)
def test_a_tensor_that_cannot_be_read_is_a_fault(observer, rows, width, on_host, message):
    tensor = Tensor(f"{observer._nodes.h}0", rows, width, on_host)
    with observer.watched([(0, 3)], "sum") as readings:
        observer.begin(3, np.array([2]))
        with pytest.raises(HQError, match=message):
            called(observer, tensor)
        assert not readings.values.any()


def test_a_tensor_that_can_be_read_is(observer):
    tensor = Tensor(f"{observer._nodes.h}0", 3, tiny.D_FF)
    with observer.watched([(0, 3)], "sum") as readings:
        observer.begin(3, np.array([2]))
        called(observer, tensor)
        share = readings.cett(3)[:, 0]
    assert (share > 0).all()
    assert (share < 1).all()
