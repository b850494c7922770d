"""Makes GPTQ and AWQ checkpoints with gptqmodel, in a process of its own.

The library sets environment variables, patches what it imports and prints a good deal: none of that
reaches the caller, and Ctrl-C or a crash leaves nothing behind but a folder that is not finished.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from hq.errors import HQError

_ROOT = Path(__file__).parents[2]  # where the child finds this very package
_DONE = "layer done"
_SHOWN = 1  # last lines of a failed run's log that are said


class Making(BaseModel):
    """What a packed checkpoint is made from and how."""

    model_config = ConfigDict(frozen=True)

    source: Path
    method: Literal["gptq", "awq"]
    bits: int
    group_size: int
    desc_act: bool = False
    sym: bool  # AWQ is asymmetric
    texts: tuple[tuple[int, ...], ...]  # token ids to calibrate with


def make(making: Making, into: Path, layer_done: Callable[[], None] = lambda: None) -> None:
    """Writes the checkpoint to `into`; `layer_done` is called after each layer.

    Raises HQError without gptqmodel, or with the last line of what it said where it fails.
    """
    if find_spec("gptqmodel") is None:
        raise HQError("Making a GPTQ or AWQ checkpoint needs gptqmodel: pip install 'hq[gptq]'.")
    with tempfile.TemporaryDirectory() as scratch:
        spec, log = Path(scratch) / "making.json", Path(scratch) / "log.txt"
        whole = making.model_copy(update={"source": making.source.absolute()})
        spec.write_text(whole.model_dump_json())
        environment = os.environ | {
            "GPTQMODEL_CPU_WORKERS": "2",  # it refuses fewer, and on two cores its own default
            "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",  # sums in another order give other codes
            "TMPDIR": scratch,  # where it offloads to
        }
        command = [sys.executable, "-m", "hq.packed.making", str(spec), str(into.absolute())]
        with (
            log.open("w") as errors,
            subprocess.Popen(  # noqa: S603 (this very Python and module)
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                cwd=scratch,
            ) as child,
        ):
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    if line.strip() == _DONE:
                        layer_done()
            except BaseException:
                child.kill()
                raise
        if child.returncode:
            said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            last = " ".join(said[-_SHOWN:]) or f"exit code {child.returncode}"
            raise HQError(f"gptqmodel could not make {making.method} of {making.source}: {last}.")


def group_size(widths: Sequence[int]) -> int:
    """128 where that divides the inputs of every projection, else 64. HQError where neither does.

    Kernels want whole groups.
    """
    for size in (128, 64):
        if all(width % size == 0 for width in widths):
            return size
    raise HQError(
        f"Projections have {min(widths)} inputs, which groups of 128 or 64 do not divide: set "
        "group_size."
    )


def _run(making: Making, into: Path) -> None:
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    awq = making.method == "awq"
    settings: dict[str, Any] = {
        "bits": making.bits,
        "group_size": making.group_size,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "desc_act": making.desc_act,
        "sym": making.sym,
        "quant_method": METHOD.AWQ if awq else METHOD.GPTQ,
        "format": FORMAT.GEMM if awq else FORMAT.GPTQ,
    }
    # Else embeddings would be saved as BF16, whatever the source has.
    model = GPTQModel.load(str(making.source), QuantizeConfig(**settings), dtype=torch.float16)
    model.layer_callback = _Announcer()
    texts = [{"input_ids": list(t), "attention_mask": [1] * len(t)} for t in making.texts]
    chosen = {"backend": BACKEND.AWQ_TORCH} if awq else {}
    model.quantize(texts, batch_size=1, calibration_data_min_length=1, **chosen)
    model.save(str(into))


class _Announcer:
    """Tells the parent process of each layer."""

    def layer_complete(self, layer_idx: int, submodule_finalized: bool) -> None:
        """Called by gptqmodel, twice a layer."""
        if submodule_finalized:
            print(_DONE, file=_PIPE, flush=True)


if __name__ == "__main__":
    # What the library prints goes to the log: stdout is the line to the parent.
    _PIPE = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _run(Making.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
