"""What Python hands to machine code is checked, whether or not Python's assertions are on."""

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
from hq.llamacpp.library import library
from hq.llamacpp.observer import GraphObserver
from tests import tiny
from tests.hq import native_misuse

ROOT = Path(__file__).parents[2]
GGUF = Callable[..., Path]
BYTES = 1024  # more than a ggml_tensor has


@pytest.fixture(scope="module")
def found(gguf: GGUF) -> dict[str, str]:
    """What each misuse is answered."""
    return native_misuse.answers(gguf("llama"))


def test_every_misuse_is_a_sentence(found):
    checked = re.compile(
        "A decode takes|A context takes|llama.cpp's callback cannot take|.* has no token|A text has|The measures are"
    )
    assert [name for name, said in found.items() if not checked.match(said)] == []


def test_no_check_is_an_assertion():
    """`python -O` removes nothing but these."""
    for path in sorted((ROOT / "hq/llama").glob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not [n.lineno for n in nodes if isinstance(n, ast.Assert)], path


@pytest.mark.slow  # everything that is imported is compiled again
def test_they_are_the_same_sentences_without_assertions(found, gguf):
    command = (sys.executable, "-O", "-m", "tests.hq.native_misuse", str(gguf("llama")))
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == found


# --- the callback itself, called with tensors that are made here


class Tensor:
    """A ggml_tensor of float32 rows, in memory that NumPy owns."""

    def __init__(self, name: str, rows: int, width: int, on_host: bool = True) -> None:
        layout = library().layout
        self.values = np.ones((rows, width), dtype=np.float32)
        self.words = np.zeros(BYTES // 8, dtype=np.int64)
        self.words[layout.ne // 8 : layout.ne // 8 + 4] = (width, rows, 1, 1)
        self.words[layout.nb // 8 : layout.nb // 8 + 2] = (4, 4 * width)
        self.words[layout.data // 8] = self.values.ctypes.data
        self.words.view(np.uint8)[layout.name : layout.name + len(name)] = list(name.encode())
        # A buffer whose type, like all else in it, is a pointer to zeros: it does not say that it is
        # host memory.
        self.zeros = np.zeros(BYTES // 8, dtype=np.int64)
        self.buffer = np.full(BYTES // 8, self.zeros.ctypes.data, dtype=np.int64)
        self.words[layout.buffer // 8] = 0 if on_host else self.buffer.ctypes.data

    @property
    def address(self) -> int:
        return self.words.ctypes.data


@pytest.fixture
def tap(gguf: GGUF) -> GraphObserver:
    """A tap for four tokens of the tiny model."""
    with LlamaBackend(gguf("llama"), "gguf-f32") as backend:
        return GraphObserver(backend._products, backend.norms, 4, backend.scales)


def called(tap: GraphObserver, tensor: Tensor) -> None:
    """The callback is handed a tensor that has been computed."""
    from hq.llamacpp import callback as native

    native._callback.ctypes(tensor.address, False, tap.attach())
    tap.end()


@pytest.mark.parametrize(
    ("rows", "width", "on_host", "message"),
    [
        (3, tiny.D_FF - 4, True, "not dense float32 of the FFN's width"),
        (2, tiny.D_FF, True, "other rows than the tokens decoded"),
        (100, tiny.D_FF, True, "other rows than the tokens decoded"),
        (3, tiny.D_FF, False, "outside host memory"),
    ],
)
def test_a_tensor_that_cannot_be_read_is_a_fault(tap, rows, width, on_host, message):
    tensor = Tensor(f"{tap._products.product}0", rows, width, on_host)
    with tap.watched([(0, 3)], "sum") as watch:
        tap.begin(3, np.array([2]))
        with pytest.raises(HQError, match=message):
            called(tap, tensor)
        assert not watch.values.any()


def test_a_tensor_that_can_be_read_is(tap):
    tensor = Tensor(f"{tap._products.product}0", 3, tiny.D_FF)
    with tap.watched([(0, 3)], "sum") as watch:
        tap.begin(3, np.array([2]))
        called(tap, tensor)
        norms = tap._arrays  # of the model, as the callback has them
        share = watch.cett(3)[:, 0]
    assert len(norms) > 0
    assert (share > 0).all()
    assert (share < 1).all()
