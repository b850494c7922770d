"""The bench of streamed traces, at a tiny shape, and its checkpoint."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from harness.bench import stream
from harness.bench.stream_model import write_llama

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}


def test_the_checkpoint_loads_and_computes(tmp_path: Path) -> None:
    size = write_llama(tmp_path, LlamaConfig(**SHAPE), 0)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert size == 2 * sum(p.numel() for p in model.parameters())
    assert model(input_ids=model.dummy_inputs["input_ids"]).logits.isfinite().all()
    assert len(list(tmp_path.glob("*.safetensors"))) == 4  # two layers, embeddings, head


def test_the_rows_have_memory_time_and_predictions() -> None:
    rows = {row.name: row for row in stream.bench_stream(shapes={"tiny": SHAPE}, samples=3)}
    assert rows["tiny_peak_gib"].ok
    assert rows["tiny_peak_gib"].value > 0
    assert rows["tiny_seconds_per_sample"].value > 0
    assert set(rows) == {
        f"tiny_{name}"
        for name in (
            "peak_gib",
            "seconds_per_sample",
            "over_reading",
            "over_products",
            "predicted_memory",
            "predicted_time",
        )
    }


def test_a_full_disk_is_a_row_without_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: FullDisk())
    (row,) = stream.bench_stream(shapes={"tiny": SHAPE})
    assert row.value is None
    assert "of disk space, and 0 are free" in row.note


class FullDisk:
    """A disk without space."""

    free = 0
