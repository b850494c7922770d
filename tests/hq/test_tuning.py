"""Directed fine-tuning on tiny models: the gradient of the penalty, its effect, and resuming."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.architectures import down_projections
from hq.models.checkpoint import architecture_at, checkpoint_identity
from hq.models.head import body_of
from hq.neurons.prompt_response import PromptResponse
from hq.tuning import training
from hq.tuning.adapter import attach
from hq.tuning.contribution import Chosen, Contributions, Reference
from hq.tuning.data import TuningData, batch_of
from hq.tuning.settings import TuningSettings
from hq.tuning.state import STATE_FILE
from hq.tuning.training import Tuned, TuningRun, train
from tests import tiny
from tests.hq.tuning_runs import CHOSEN, DATA, OTHERS, SETTINGS, run_on

pytest.importorskip("peft")
MEASURES = ("sum", "output")


def chosen(path: Path, measure: str = "sum", span: str = "answer") -> Chosen:
    return Chosen(np.sort(CHOSEN), checkpoint_identity(path).space, measure, span)


def padded(texts: list[PromptResponse]) -> torch.Tensor:
    ids = [torch.tensor(text.ids) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("span", ["answer", "prompt"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi3", "gemma2"])
def test_contributions_are_those_of_a_trace(checkpoint, family, measure, span):
    path, texts = checkpoint(family), tiny.exchanges()
    with TorchBackend(path, device="cpu") as backend:
        (batch,) = backend.trace(texts, (measure,), (span,))
        read = Contributions(body_of(backend.decoder), backend.downs, chosen(path, measure, span))
        with torch.no_grad():
            found = read(padded(texts), texts)
    expected = np.empty((len(texts), len(CHOSEN)), dtype=np.float32)
    expected[batch.rows] = batch.values[:, 0, 0, np.sort(CHOSEN)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kind", ["hinge", "activation"])
def test_the_gradient_of_the_penalty_is_that_of_finite_differences(checkpoint, measure, kind):
    """With respect to A and B of every target, also through ‖W_down + B·A‖."""
    path, texts = checkpoint("llama"), tiny.exchanges(3)
    family = architecture_at(path)
    model = tiny.model("llama")
    adapter = attach(model, family, ("gate", "up", "down"), rank=2, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters.values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    decoder = model.get_decoder()
    read = Contributions(body_of(decoder), down_projections(decoder, family), chosen(path, measure))
    with torch.no_grad():
        values = read(padded(texts), texts)
    reference = Reference.of(values * 0.7, 0.5)  # so that some texts exceed their targets

    def penalty() -> torch.Tensor:
        return reference.penalty(read(padded(texts), texts), kind)

    penalty().backward()
    for parameter in adapter.parameters.values():
        if parameter.grad is None or not parameter.grad.any():
            continue
        direction = parameter.grad / parameter.grad.norm()
        step, values = 5e-4, []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(sign * step * direction)
                values.append(float(penalty()))
                parameter.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float(parameter.grad.norm()), rel=0.03, abs=1e-3)
    with_gradient = [n for n, p in adapter.parameters.items() if p.grad is not None]
    # The last layer with a chosen neuron is 2: all gates, ups and downs act on it.
    assert len(with_gradient) == 2 * 3 * tiny.LAYERS


def test_the_hinge_is_zero_below_the_target_and_linear_above():
    reference = Reference(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0]))
    values = torch.tensor([[0.5, 6.0], [2.0, 1.0]])
    assert float(reference.penalty(values, "hinge")) == pytest.approx((0 + 1 + 2 + 0) / 4)
    assert float(reference.penalty(values, "activation")) == pytest.approx((1 + 1.5 + 4 + 0.25) / 4)


def contribution(path: Path, tuned: Tuned, flat: np.ndarray) -> float:
    """The mean CETT of neurons on the penalised texts with the LoRA, over that without."""
    family, means = architecture_at(path), []
    model = tiny.model("llama")
    adapter = attach(model, family, SETTINGS.targets, SETTINGS.rank, seed=9)
    with torch.no_grad():
        for name, parameter in adapter.parameters.items():
            parameter.copy_(tuned.adapter[name])
    decoder, space = model.get_decoder(), checkpoint_identity(path).space
    read = Contributions(
        body_of(decoder),
        down_projections(decoder, family),
        Chosen(np.sort(flat), space, "sum", "answer"),
    )
    texts = list(DATA.penalised)
    with torch.no_grad():
        means.append(read(padded(texts), texts).mean(dim=0))
        with adapter.disabled():
            means.append(read(padded(texts), texts).mean(dim=0))
    return float((means[0] / means[1]).mean())


def test_the_penalty_lowers_the_chosen_neurons_and_no_others(checkpoint, tmp_path):
    path = checkpoint("llama")
    tuned = train(path, run_on(path, CHOSEN), tmp_path / "h", "cpu")
    plain = train(path, run_on(path, CHOSEN[:0]), tmp_path / "plain", "cpu")
    assert contribution(path, tuned, CHOSEN) < 0.6
    assert contribution(path, plain, CHOSEN) > 0.85
    assert contribution(path, tuned, OTHERS) > 0.85
    logged = [record["contribution"] for record in tuned.log if "contribution" in record]
    assert logged[-1] < 0.6 * logged[0] or logged[-1] < 0.5
    assert {"loss", "ce", "penalty", "kl"} <= tuned.log[0].keys()
    assert all(record["penalty"] == 0 for record in plain.log)


def test_cross_entropy_falls_and_every_term_is_in_the_loss(checkpoint, tmp_path):
    path = checkpoint("llama")
    tuned = train(path, run_on(path, CHOSEN), tmp_path, "cpu")
    first, last = tuned.log[0], tuned.log[-1]
    assert last["ce"] < first["ce"]
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert last["kl"] > 1e-4
    for record in tuned.log:
        total = record["ce"] + 2.0 * record["penalty"] + 0.5 * record["kl"]
        assert record["loss"] == pytest.approx(total, rel=1e-5)


def test_two_runs_are_equal_and_another_seed_is_not(checkpoint, tmp_path):
    path = checkpoint("llama")
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # the state of the generator has no effect
        settings = dataclasses.replace(SETTINGS, seed=seed, steps=6)
        runs.append(train(path, run_on(path, CHOSEN, settings), tmp_path / str(number), "cpu"))
    one, two, other = ({n: t.numpy().tobytes() for n, t in r.adapter.items()} for r in runs)
    assert one == two
    assert one != other


@pytest.mark.skipif(os.name == "nt", reason="this machine: Windows has no SIGKILL")
@pytest.mark.parametrize("at", [3, 9, 13])
def test_a_killed_run_that_is_resumed_ends_with_the_same_adapter(checkpoint, tmp_path, at):
    """Killed before the first checkpoint, after one, and after two; 5 steps lie between them."""
    path, settings = checkpoint("llama"), dataclasses.replace(SETTINGS, steps=15)
    run = run_on(path, CHOSEN, settings)
    whole = train(path, run, tmp_path / "whole", "cpu")
    folder = tmp_path / "killed"
    folder.mkdir()
    child = os.fork()
    if child == 0:
        done = 0

        def kill(steps: int, _note: str) -> None:
            nonlocal done
            done += steps
            if done == at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            train(path, run, folder, "cpu", kill)
        finally:
            os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (folder / STATE_FILE).is_file() == (at >= settings.every)
    taken = []
    resumed = train(path, run, folder, "cpu", lambda steps, _: taken.append(steps))
    assert taken[0] == at // settings.every * settings.every
    assert sum(taken) == settings.steps
    assert resumed.log == whole.log
    for name, tensor in whole.adapter.items():
        assert tensor.numpy().tobytes() == resumed.adapter[name].numpy().tobytes()
    assert not (folder / STATE_FILE).exists()


def test_the_state_of_another_run_is_refused(checkpoint, tmp_path, monkeypatch):
    path = checkpoint("llama")
    run = run_on(path, CHOSEN, dataclasses.replace(SETTINGS, steps=10))

    def interrupt(steps: int, _note: str) -> None:
        if (tmp_path / STATE_FILE).exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(path, run, tmp_path, "cpu", interrupt)
    with pytest.raises(HQError, match="other settings"):
        train(path, dataclasses.replace(run, digest="other"), tmp_path, "cpu")
    (tmp_path / STATE_FILE).write_bytes(b"half")
    with pytest.raises(HQError, match="cannot be read"):
        train(path, run, tmp_path, "cpu")


def test_a_loss_of_capability_ends_training_and_the_checkpoint_before_is_kept(checkpoint, tmp_path):
    path = checkpoint("llama")
    free = dataclasses.replace(SETTINGS, learning_rate=0.05, kl_weight=0.0, every=1, stop=1e9)
    rises = [r["rise"] for r in train(path, run_on(path, CHOSEN, free), tmp_path, "cpu").log]
    limit = max(rises[:3]) + 1e-6
    beyond = next(i for i, rise in enumerate(rises) if rise > limit)
    stopped = train(
        path, run_on(path, CHOSEN, dataclasses.replace(free, stop=limit)), tmp_path, "cpu"
    )
    assert stopped.stopped
    assert len(stopped.log) == beyond + 1
    assert stopped.kept_step == beyond
    # The learning rate depends on the number of steps, so the kept LoRA is not that of a short run.
    until = train(path, run_on(path, CHOSEN, dataclasses.replace(free, stop=-1e9)), tmp_path, "cpu")
    assert (until.kept_step, len(until.log)) == (0, 1)
    assert not any(t.any() for n, t in until.adapter.items() if "lora_B" in n)


@pytest.mark.parametrize("use", ["penalised", "right", "refusals", "neutral", "validation"])
def test_data_of_one_class_are_refused_before_training(checkpoint, tmp_path, use):
    path = checkpoint("llama")
    run = dataclasses.replace(run_on(path, CHOSEN), data=dataclasses.replace(DATA, **{use: []}))
    with pytest.raises(HQError, match="The training data contain no"):
        train(path, run, tmp_path, "cpu")


def test_a_gate_that_the_model_lacks_is_refused(checkpoint, tmp_path):
    path = checkpoint("gpt2")
    with pytest.raises(HQError, match="has no gate projection"):
        train(path, run_on(path, CHOSEN), tmp_path, "cpu")


def test_a_diverging_loss_is_one_sentence(checkpoint, tmp_path, monkeypatch):
    path = checkpoint("llama")
    monkeypatch.setattr(
        training.TuningSettings, "rate", lambda self, step: float("inf"), raising=True
    )
    with pytest.raises(HQError, match="not finite"):
        train(path, run_on(path, CHOSEN), tmp_path, "cpu")


def test_a_batch_depends_on_the_step_only_and_every_epoch_has_each_item_once():
    items = list(range(7))
    epoch = [item for step in range(7) for item in batch_of(items, 3, step, 0, 1)]
    assert [sorted(epoch[i : i + 7]) for i in (0, 7, 14)] == [items] * 3
    assert epoch[:7] != epoch[7:14]
    assert batch_of(items, 3, 4, 0, 1) == epoch[12:15]
    assert batch_of(items, 7, 0, 0, 2) != epoch[:7]


def test_the_learning_rate_rises_and_decays():
    settings = TuningSettings(steps=100, learning_rate=1.0)
    rates = [settings.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx(np.linspace(0.1, 1, 10))
    assert max(rates) == 1
    assert rates[-1] == pytest.approx(1 / 90)


def test_the_run_and_its_data_are_what_a_state_is_of():
    assert {field.name for field in dataclasses.fields(TuningData)} == {
        "penalised",
        "right",
        "refusals",
        "neutral",
        "validation",
    }
    assert "digest" in {field.name for field in dataclasses.fields(TuningRun)}
