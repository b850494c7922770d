"""Makes GPTQ and AWQ checkpoints with other libraries, in a process of its own.

They set environment variables, patch what they import and print a good deal: none of that reaches
the caller, and Ctrl-C or a crash leaves nothing behind but a folder that is not finished.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from hq.errors import HQError
from hq.precisions.packed_checkpoints.makers import DONE, MAKERS, Making

_ROOT = Path(__file__).parents[3]  # where the child finds this very package
_SHOWN = 1  # last lines of a failed run's log that are said


def make(making: Making, into: Path, layer_done: Callable[[], None] = lambda: None) -> None:
    """Writes the checkpoint to `into`; `layer_done` is called after each layer.

    Raises HQError without the method's library, or with the last line of what it said where it
    fails.
    """
    maker = MAKERS[making.method]
    if find_spec(maker.module) is None:
        raise HQError(
            f"Making a checkpoint by {making.method} needs {maker.name}: pip install 'hq[gptq]'."
        )
    with tempfile.TemporaryDirectory() as scratch:
        spec, log = Path(scratch) / "making.json", Path(scratch) / "log.txt"
        whole = making.model_copy(update={"source": making.source.absolute()})
        spec.write_text(whole.model_dump_json(), encoding="utf-8")
        environment = os.environ | {
            "GPTQMODEL_CPU_WORKERS": "2",  # it refuses fewer, and on two cores its own default
            "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",  # sums in another order give other codes
            "TMPDIR": scratch,  # where it offloads to
        }
        command = [
            sys.executable,
            "-m",
            "hq.precisions.packed_checkpoints.makers",
            str(spec),
            str(into.absolute()),
        ]
        with (
            log.open("w", encoding="utf-8") as errors,
            subprocess.Popen(  # noqa: S603 (this very Python and module)
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
                    if line.strip() == DONE:
                        layer_done()
            except BaseException:
                child.kill()
                raise
        if child.returncode:
            said = [
                line
                for line in log.read_text(errors="replace", encoding="utf-8").splitlines()
                if line.strip()
            ]
            last = " ".join(said[-_SHOWN:]) or f"exit code {child.returncode}"
            raise HQError(
                f"{maker.name} could not make {making.method} of {making.source}: {last}."
            )


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
