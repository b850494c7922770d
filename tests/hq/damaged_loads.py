"""Damage a GGUF file many times, and load each result in a process of its own.

`python -m tests.hq.damaged_loads FILE SEED COUNT` prints a line for each that neither
loaded nor raised an HQError.
"""

import os
import random
import sys
from pathlib import Path

from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.neurons.prompt_response import PromptResponse

_LOADED, _REJECTED, _OTHER = 0, 2, 7


def main(source: Path, seed: int, count: int) -> None:
    """Most of the damage is in the header, where every byte matters."""
    original = source.read_bytes()
    header = min(tensor.offset for tensor in GGUFFile(source).tensors.values())
    rng = random.Random(seed)
    # Compiles the callback, which child processes inherit.
    list(LlamaBackend(source).trace([PromptResponse((5,), (6,))]))
    for _ in range(count):
        data, positions = (
            bytearray(original),
            rng.choices(range(header), k=rng.choice([1, 1, 2, 4])),
        )
        if rng.random() < 0.2:
            positions = [rng.randrange(len(original))]
        for position in positions:
            data[position] = rng.randrange(256)
        damaged = source.with_name("damaged.gguf")
        damaged.write_bytes(data[: rng.choice([len(data)] * 4 + [rng.randrange(len(data))])])
        if (code := _load(damaged)) not in (_LOADED, _REJECTED):
            print(code, positions)


def _load(path: Path) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        backend = LlamaBackend(path)
        list(backend.trace([PromptResponse((5, 6, 7), (8, 9))]))
        backend.decoding().start([(5, 6, 7)])
    except HQError:
        os._exit(_REJECTED)
    except BaseException:
        os._exit(_OTHER)
    os._exit(_LOADED)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
