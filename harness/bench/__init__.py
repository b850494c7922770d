"""Benchmarks of `hq bench`: speed and memory as ratios to a peer in the same run, and simulations.

Quality of detection and steering is measured by `harness.experiments`. This module registers every
benchmark.
"""

from harness.bench.base import BENCHES, report
from harness.bench.cett import bench_cett
from harness.bench.deploy import bench_deploy
from harness.bench.identify import bench_identify
from harness.bench.intervals import bench_intervals
from harness.bench.l1 import bench_l1
from harness.bench.l1_large import bench_l1_large
from harness.bench.logits import bench_logits
from harness.bench.monitor import bench_monitor
from harness.bench.planted import bench_planted
from harness.bench.sampling import bench_sampling
from harness.bench.scale import bench_scale
from harness.bench.serving import bench_serving
from harness.bench.stream import bench_stream
from harness.bench.tests import bench_tests
from harness.bench.workers import bench_workers

BENCHES.add("cett", bench_cett)
BENCHES.add("deploy", bench_deploy)
BENCHES.add("identify", bench_identify)
BENCHES.add("intervals", bench_intervals)
BENCHES.add("l1", bench_l1)
BENCHES.add("l1-large", bench_l1_large)
BENCHES.add("logits", bench_logits)
BENCHES.add("monitor", bench_monitor)
BENCHES.add("planted", bench_planted)
BENCHES.add("sampling", bench_sampling)
BENCHES.add("scale", bench_scale)
BENCHES.add("serving", bench_serving)
BENCHES.add("stream", bench_stream)
BENCHES.add("tests", bench_tests)
BENCHES.add("workers", bench_workers)

__all__ = ["BENCHES", "report"]
