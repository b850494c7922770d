"""Benchmarks of scale: large models, many features, many machines, many clients."""

from harness.bench.base import Bench, BenchRow
from harness.bench.l1_large import bench_l1_large
from harness.bench.serving import bench_serving
from harness.bench.stream import bench_stream
from harness.bench.workers import bench_workers

_PARTS: dict[str, Bench] = {
    "stream": bench_stream,
    "l1-large": bench_l1_large,
    "workers": bench_workers,
    "serving": bench_serving,
}


def bench_scale() -> list[BenchRow]:
    """Run the benchmarks of scale one after another. Takes about 40 minutes and 17 GB of disk.

    Names of rows begin with the name of their benchmark.
    """
    return [
        row.model_copy(update={"name": f"{part}: {row.name}"})
        for part, bench in _PARTS.items()
        for row in bench()
    ]
