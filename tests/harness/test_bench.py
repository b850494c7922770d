import json
import re

import numpy as np
import pytest
from pydantic import ValidationError

from harness.bench import BENCHES, deploy, sampling
from harness.bench.base import BenchRow, report
from harness.bench.l1 import bench_l1
from harness.bench.logits import bench_logits
from harness.bench.monitor import bench_monitor
from hq.suppress.lora.gguf import write_gguf_adapter as write_adapter


@pytest.mark.parametrize(
    ("value", "goal", "ok"),
    [
        (5.0, ">= 5", True),
        (4.9, ">= 5", False),
        (1e-5, "<= 1e-4", True),
        (3.0, None, None),
        (None, ">= 5", None),
    ],
)
def test_a_row_says_whether_it_meets_its_goal(value, goal, ok):
    assert BenchRow(name="x", value=value, unit="x", goal=goal).ok is ok


def test_a_goal_must_be_a_comparison():
    with pytest.raises(ValidationError):
        BenchRow(name="x", value=1.0, unit="x", goal="about 5")


def test_the_report_is_json_with_machine_and_rows():
    found = report("l1", [BenchRow(name="x", value=1.0, unit="s", goal=">= 1")])
    again = json.loads(json.dumps(found))
    assert again["rows"] == [
        {"name": "x", "value": 1.0, "unit": "s", "goal": ">= 1", "note": "", "ok": True}
    ]
    assert again["machine"]["cores"] >= 1
    assert "numpy" in again["machine"]["packages"]


def test_early_stopping_saves_tokens_and_keeps_the_same_questions(
    tiny_study, tmp_path, monkeypatch
):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    rows = {row.name: row for row in sampling.bench_sampling(str(tiny_study), questions=100)}
    assert rows["retained_set_equal"].ok
    assert rows["token_saving"].value >= rows["token_saving_same_questions"].value
    assert rows["token_saving_same_questions"].value > rows["token_saving_by_tree_alone"].value > 1
    assert rows["tokens_per_second"].value > 0
    assert not list(tmp_path.glob("store/sample-*"))


def test_a_changed_response_is_not_the_same_set(tiny_study, tmp_path, monkeypatch):
    sampled = sampling._sample

    def changed(materials, runner, prompted, wanted, *precision):
        records, seconds = sampled(materials, runner, prompted, wanted, *precision)
        if wanted.__name__ == "consistent":
            record = next(r for r in records.values() if r.hallucinated is not None)
            records[record.id] = record.model_copy(update={"responses": record.responses[1:]})
        return records, seconds

    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    monkeypatch.setattr(sampling, "_sample", changed)
    rows = {row.name: row for row in sampling.bench_sampling(str(tiny_study), questions=100)}
    assert rows["retained_set_equal"].ok is False


def test_other_pairs_at_the_quota_are_not_the_same_set(tiny_study, tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    monkeypatch.setattr(
        sampling, "_until_full", lambda records, asked, quota, chunk, balance: asked[:5]
    )
    rows = {row.name: row for row in sampling.bench_sampling(str(tiny_study), questions=100)}
    assert rows["retained_set_equal"].ok is False


def test_notes_of_savings_have_both_token_counts(tiny_study, tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    rows = {row.name: row for row in sampling.bench_sampling(str(tiny_study), questions=100)}
    for name in ("token_saving", "token_saving_same_questions"):
        above, below = (int(n) for n in re.findall(r"(\d+) tokens", rows[name].note))
        assert above / below == rows[name].value


def test_l1_has_its_rows_at_a_small_size(monkeypatch):
    assert BENCHES["l1"] is bench_l1
    monkeypatch.setattr("harness.bench.l1._SAGA_BUDGET_S", 0.05)
    rows = {row.name: row for row in bench_l1(seed=0, n=200, p=300)}
    assert set(rows) == {
        "jit_warmup_s",
        "skglm_s",
        "speedup_over_liblinear",
        "speedup_over_saga",
        "objective_gap_relative",
    }
    assert rows["objective_gap_relative"].ok


def test_logits_has_its_rows_at_a_small_size_and_little_memory():
    vocabulary, texts = 60_000, 60
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    rows = {row.name: row for row in bench_logits(texts=texts, shape=shape)}
    assert list(rows) == [
        "logits_over_trace",
        "logits_over_trace_with_divergence",
        "peak_extra_mib",
        "reference_stored_mib",
        "largest_divergence_from_itself",
    ]
    assert rows["largest_divergence_from_itself"].ok
    # The logits of the texts' 330 tokens would take 79 MB, and their log-probabilities as much.
    assert 0 < rows["peak_extra_mib"].value < 60


def test_monitor_has_its_rows_at_a_small_size(gguf, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    rows = {row.name: row for row in bench_monitor(rounds=1, model=str(gguf("llama", "q8_0")))}
    assert list(rows) == [
        "decode_ratio_5_layers",
        "decode_ratio_all_layers",
        "decode_ratio_python_callback_5_layers",
        "decode_ratio_python_callback_all_layers",
        "decode_ratio_entropy",
        "added_p99_ms",
        "torch_monitor_ratio_5_layers",
        "torch_monitor_ratio_all_layers",
        "torch_decode_ratio_all_layers",
    ]
    assert all(np.isfinite(row.value) for row in rows.values())


def test_deploy_compares_four_ways(gguf, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    source = gguf("llama", "q8_0")
    beside = set(source.parent.iterdir())
    rows = {row.name: row for row in deploy.bench_deploy(rounds=1, model=str(source))}
    assert list(rows) == [
        "baked_decode_ratio",
        "baked_max_abs_logit_difference",
        "bake_seconds",
        "lora_decode_ratio",
        "lora_relative_error_of_effect",
        "native_callback_decode_ratio",
        "native_callback_relative_error_of_effect",
        "torch_hooks_decode_ratio",
        "torch_hooks_relative_error_of_effect",
    ]
    for name in ("baked_max_abs_logit_difference", "lora_relative_error_of_effect"):
        assert rows[name].value == 0.0
        assert rows[name].ok
    for name in ("native_callback", "torch_hooks"):
        assert 0 <= rows[f"{name}_relative_error_of_effect"].value < 1e-3
    assert all(row.value > 0 for row in rows.values() if row.unit)
    assert {path.name for path in set(source.parent.iterdir()) - beside} <= {
        f"{source.name}.hq.safetensors"
    }


def test_an_adapter_of_other_neurons_is_not_the_same_effect(gguf, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")

    def others(base, factors, into):
        moved = {(layer, (i + 1) % base.d_ff): alpha for (layer, i), alpha in factors.items()}
        write_adapter(base, moved, into)

    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    monkeypatch.setattr(deploy, "write_adapter", others)
    rows = {
        row.name: row for row in deploy.bench_deploy(rounds=1, model=str(gguf("llama", "q8_0")))
    }
    assert rows["lora_relative_error_of_effect"].value > 0.1
    assert rows["lora_relative_error_of_effect"].ok is False
