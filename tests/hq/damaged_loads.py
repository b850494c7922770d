"""Damages a GGUF file again and again, and loads each in a process of its own.

`python -m tests.hq.damaged_loads FILE SEED COUNT` prints a line for each that ended otherwise than by
loading, or by a refusal in a sentence.
"""

import os
import random
import sys
from pathlib import Path

from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.neurons.prompt_response import PromptResponse

_LOADED, _REFUSED, _OTHER = 0, 2, 7


def main(source: Path, seed: int, count: int) -> None:
    """Most of the damage is in the header, whose every byte says something."""
    whole = source.read_bytes()
    header = min(tensor.offset for tensor in GGUFFile(source).tensors.values())
    rng = random.Random(seed)
    list(
        LlamaBackend(source).trace([PromptResponse((5,), (6,))])
    )  # what is compiled, children inherit
    for _ in range(count):
        data, places = bytearray(whole), rng.choices(range(header), k=rng.choice([1, 1, 2, 4]))
        if rng.random() < 0.2:
            places = [rng.randrange(len(whole))]
        for place in places:
            data[place] = rng.randrange(256)
        damaged = source.with_name("damaged.gguf")
        damaged.write_bytes(data[: rng.choice([len(data)] * 4 + [rng.randrange(len(data))])])
        if (code := _load(damaged)) not in (_LOADED, _REFUSED):
            print(code, places)


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
        os._exit(_REFUSED)
    except BaseException:
        os._exit(_OTHER)
    os._exit(_LOADED)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
