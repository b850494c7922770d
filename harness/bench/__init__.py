"""Benchmarks: importing this package enters each of them in `BENCHES`."""

from harness.bench import cett as cett
from harness.bench import deploy as deploy
from harness.bench import l1 as l1
from harness.bench import logits as logits
from harness.bench import monitor as monitor
from harness.bench import sampling as sampling
from harness.bench.base import BENCHES as BENCHES
from harness.bench.base import report as report
