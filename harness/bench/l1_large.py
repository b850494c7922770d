"""Bench `l1-large`: L1 paths on up to 2.3 million features, out of core, against peers.

The design is on disk, column after column. hq reads it in passes and keeps a few hundred columns.
skglm fits the standardised matrix in memory, and pybiglasso reads the mapped file. All fit the same
values of C. Memory is what a new process allocates; pages of the mapped file do not count, because
the system can drop them at any time.
"""

import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.bench.base import BenchRow
from harness.bench.correlated import Design, Solution, objectives, write_design
from harness.bench.identify import full_matrix_path
from harness.bench.memory import Peak, with_peak
from hq.neurons.features import standardise
from hq.probe.l1 import Columns, l1_path, smallest_c, warm_up
from hq.probe.matrix import Streamed

SIZES = (46_080, 460_800, 2_293_760)  # SmolLM2-135M, ten times that, and Llama-3.3-70B
_IN_MEMORY = 500_000  # columns that skglm gets: two copies of the matrix
_GRID = np.geomspace(1.1, 3.0, 10)  # multiples of the smallest C that selects a column
_GAP = 1e-6
_INSTALL = "pybiglasso is not installed: pip install --no-deps 'pybiglasso==0.2.*'"


class _Fitted(NamedTuple):
    seconds: float
    Cs: list[float]
    solutions: list[Solution]
    tolerance: float = 0.0


def bench_l1_large(seed: int = 0, n: int = 400, sizes: Sequence[int] = SIZES) -> list[BenchRow]:
    """Measure seconds, memory and objectives. Takes about 10 minutes, and 3.7 GB of disk.

    Args:
        seed: Seed of the design.
        n: Number of responses.
        sizes: Numbers of columns.
    """
    rows = []
    for p in sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows += _of_size(write_design(Path(folder) / "design.npy", seed, n, p))
    return rows


def _of_size(design: Design) -> list[BenchRow]:
    n, p = design.matrix.shape
    name = f"{p / 1e6:.1f}M" if p >= 1e6 else f"{p // 1000}k"
    ours = with_peak(warm_up, _streamed, design)
    Cs = ours.result.Cs
    peers: dict[str, Peak[_Fitted]] = {}
    if p <= _IN_MEMORY:
        peers["skglm"] = with_peak(warm_up, _in_memory, design, Cs)
    if find_spec("pybiglasso") is not None:
        peers["pybiglasso"] = with_peak(_import_pybiglasso, _pybiglasso, design, Cs)
    values = {
        solver: objectives(design, Cs, fitted.result.solutions)
        for solver, fitted in {"hq": ours, **peers}.items()
    }
    best = np.min(list(values.values()), axis=0)
    matrix = 4 * n * p / 2**20
    kept = max(len(solution.columns) for solution in ours.result.solutions)
    rows = [
        BenchRow(
            name=f"hq_s_{name}",
            value=ours.result.seconds,
            unit="s",
            note=f"n = {n}, p = {p}, {len(Cs)} values of C, up to {kept} of {p} weights non-zero; "
            f"optimality conditions met within {ours.result.tolerance:g}",
        ),
        BenchRow(
            name=f"hq_memory_over_matrix_{name}",
            value=ours.mib / matrix,
            unit="ratio",
            goal="<= 0.1" if p > _IN_MEMORY else None,
            note=f"{ours.mib:.0f} MiB; the matrix has {matrix:.0f} MiB",
        ),
    ]
    if not peers.keys() >= {"pybiglasso"}:
        rows.append(
            BenchRow(name=f"speedup_over_pybiglasso_{name}", value=None, unit="x", note=_INSTALL)
        )
    for solver, fitted in peers.items():
        rows += [
            BenchRow(
                name=f"speedup_over_{solver}_{name}",
                value=fitted.result.seconds / ours.result.seconds,
                unit="x",
                note=f"{solver} took {fitted.result.seconds:.1f} s",
            ),
            BenchRow(
                name=f"memory_over_{solver}_{name}",
                value=ours.mib / fitted.mib,
                unit="ratio",
                note=f"{solver} took {fitted.mib:.0f} MiB",
            ),
        ]
    if peers:
        gaps = ", ".join(f"{s} {float(np.max(v / best - 1)):.1e}" for s, v in values.items())
        rows.append(
            BenchRow(
                name=f"objective_gap_relative_{name}",
                value=float(np.max(values["hq"] / best - 1)),
                unit="relative",
                goal=f"<= {_GAP:g}",
                note=f"largest excess over the lowest objective of any solver: {gaps}",
            )
        )
    return rows


def _streamed(design: Design) -> _Fitted:
    rows = np.arange(len(design.y))
    started = time.perf_counter()
    (columns,) = Columns.parts(Streamed([design.matrix]), [rows])
    moments = time.perf_counter() - started
    Cs = (smallest_c(columns, design.y) * _GRID).tolist()  # the peers are given these
    started = time.perf_counter()
    path = l1_path(columns, design.y, Cs)
    seconds = moments + time.perf_counter() - started
    weights = [path.weights[[i]] for i in range(len(Cs))]
    solutions = [
        Solution(w.indices, w.data.astype(np.float64), float(b))
        for w, b in zip(weights, path.intercepts, strict=True)
    ]
    return _Fitted(seconds, Cs, solutions, float(path.tolerances.max()))


def _in_memory(design: Design, Cs: Sequence[float]) -> _Fitted:
    started = time.perf_counter()
    weights = full_matrix_path(standardise(design.matrix).Z, design.y, Cs)
    seconds = time.perf_counter() - started
    used = [np.flatnonzero(w[:-1]) for w in weights]
    solutions = [
        Solution(u, w[u].astype(np.float64), float(w[-1]))
        for u, w in zip(used, weights, strict=True)
    ]
    return _Fitted(seconds, list(Cs), solutions)


def _import_pybiglasso() -> None:
    import pybiglasso  # noqa: F401  # before memory is measured


def _pybiglasso(design: Design, Cs: Sequence[float]) -> _Fitted:
    from pybiglasso import biglasso

    started = time.perf_counter()
    # Its objective is that of hq divided by C · n, on columns that it standardises alike.
    penalties = [1 / (C * len(design.y)) for C in Cs]
    path = biglasso(design.matrix, design.y, lambdas=penalties, n_threads=1, eps=1e-7)
    seconds = time.perf_counter() - started
    solutions = []
    for i in range(len(Cs)):
        column = path.coef[:, [i]].tocoo()
        used, weights = column.row, column.data * path.scale[column.row]
        shift = float(column.data @ path.center[used])
        solutions.append(Solution(used, weights, float(path.intercept[i]) + shift))
    return _Fitted(seconds, list(Cs), solutions)
