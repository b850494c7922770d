"""The cost model of streamed traces: counts that are known, and how costs grow."""

from dataclasses import replace
from pathlib import Path

import pytest

from hq.backends.streamed.cost import GPU_24, LLAMA_70B, Machine, Shape, cost
from hq.models.checkpoint import architecture_at, text_config
from tests import tiny

CPU = Machine("CPU", "cpu", 1e9, 1e11, 3e7, 5e8)
LLAMA_8B = Shape(32, 4096, 14_336, 128_256, 4096, 1024)


def test_the_weights_are_those_of_the_published_models() -> None:
    assert LLAMA_8B.weights == pytest.approx(8.03e9, rel=1e-3)
    assert LLAMA_70B.weights == pytest.approx(70.55e9, rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt"])
def test_a_layer_has_the_weights_of_the_model(family: str, tmp_path: Path) -> None:
    path = tiny.save(family, tmp_path)
    config, architecture = text_config(path), architecture_at(path)
    decoder = tiny.model(family).get_decoder()
    layer = decoder.get_submodule(architecture.layers)[0]
    held = sum(p.numel() for p in layer.parameters() if p.ndim == 2)
    assert Shape.of(config, architecture).layer == held


def test_a_pass_reads_the_layers_once_for_all_precisions() -> None:
    one = cost(LLAMA_8B, ["fp16"], 100, 50, CPU)
    two = cost(LLAMA_8B, ["fp16", "nf4"], 100, 50, CPU)
    assert one.read == two.read == 2 * 32 * LLAMA_8B.layer
    assert two.flops == 2 * one.flops
    assert two.memory == one.memory  # precisions take turns
    # 2 operations per weight and token, and attention
    assert one.flops == pytest.approx(2 * 32 * LLAMA_8B.layer * 5000, rel=0.01)


def test_time_is_that_of_the_slower_of_reading_and_computing() -> None:
    slow_disk = replace(CPU, disk=1e6)
    assert cost(LLAMA_8B, ["fp16"], 1, 10, slow_disk).seconds == 2 * 32 * LLAMA_8B.layer / 1e6
    computing = cost(LLAMA_8B, ["fp16"], 1000, 50, CPU)
    assert computing.seconds > computing.products > computing.read / CPU.disk


def test_eight_billion_weights_need_less_than_4_gib_on_a_cpu() -> None:
    assert cost(LLAMA_8B, ["fp16", "nf4"], 1000, 48, CPU).memory < 4 << 30


def test_seventy_billion_weights_fit_a_gpu_of_24_gb() -> None:
    estimate = cost(LLAMA_70B, ["fp16", "nf4"], 1000, 48, GPU_24)
    assert estimate.device_memory < 24e9
    assert estimate.memory < 16 << 30
