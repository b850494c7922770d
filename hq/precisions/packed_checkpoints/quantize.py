"""Quantize checkpoints to GPTQ and AWQ with other libraries, in a child process.

These libraries set environment variables, patch modules and print a lot, none of which reaches the
caller. After Ctrl-C or a crash only an incomplete folder is left.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from hq.errors import HQError
from hq.precisions.packed_checkpoints.quantizers import LAYER_DONE, QUANTIZERS, QuantizationJob

_ROOT = Path(__file__).parents[3]  # from which the child imports this package


def quantize_checkpoint(
    job: QuantizationJob, into: Path, layer_done: Callable[[], None] = lambda: None
) -> None:
    """Write the quantized checkpoint to `into`; `layer_done` is called after each layer.

    Raises HQError if the library of the method is not installed, and, with the last line of its
    log, if it fails.
    """
    quantizer = QUANTIZERS[job.method]
    if find_spec(quantizer.module) is None:
        raise HQError(f"Quantizing to {job.method} needs {quantizer.name}: pip install 'hq[gptq]'.")
    with tempfile.TemporaryDirectory() as scratch:
        spec, log = Path(scratch) / "job.json", Path(scratch) / "log.txt"
        absolute = job.model_copy(update={"source": job.source.absolute()})
        spec.write_text(absolute.model_dump_json(), encoding="utf-8")
        environment = os.environ | {
            "GPTQMODEL_CPU_WORKERS": "2",  # the minimum; its default fails on two cores
            "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",  # sums in another order give other codes
            "TMPDIR": scratch,  # for offloaded weights
        }
        module = "hq.precisions.packed_checkpoints.quantizers"
        command = [sys.executable, "-m", module, str(spec), str(into.absolute())]
        with (
            log.open("w", encoding="utf-8") as errors,
            subprocess.Popen(  # noqa: S603 (this Python, and a module of this package)
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                cwd=scratch,
                encoding="utf-8",
            ) as child,
        ):
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    if line.strip() == LAYER_DONE:
                        layer_done()
            except BaseException:
                child.kill()
                raise
        if child.returncode:
            lines = log.read_text(errors="replace", encoding="utf-8").splitlines()
            messages = [line for line in lines if line.strip()]
            reason = messages[-1] if messages else f"exit code {child.returncode}"
            raise HQError(
                f"{quantizer.name} could not quantize {job.source} to {job.method}: {reason}."
            )


def group_size(widths: Sequence[int]) -> int:
    """128 if it divides the inputs of every projection, else 64: kernels need complete groups.

    Raises HQError if neither does.
    """
    for size in (128, 64):
        if all(width % size == 0 for width in widths):
            return size
    raise HQError(
        f"Projections have {min(widths)} inputs, which groups of 128 or 64 do not divide: set "
        "group_size."
    )
