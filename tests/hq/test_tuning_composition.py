"""Fine-tuning, baking and monitoring on one model."""

import dataclasses

import numpy as np
import pytest
import torch

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.checkpoint import checkpoint_identity
from hq.monitor import TorchMonitor
from hq.neurons.prompt_response import PromptResponse
from hq.suppress.bake.baking import bake, read_record, undo
from hq.suppress.bake.compatibility import require_owner
from hq.tuning.adapter import write_adapter
from hq.tuning.merging import merge
from hq.tuning.training import train
from tests.hq.monitored import PROMPT, asked, load, neuron_set
from tests.hq.tuning_runs import CHOSEN, SETTINGS, run_on

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's


def test_a_tuned_model_is_baked_and_monitored(checkpoint, tmp_path):
    """What runs is W + B·A with α on the H-Neurons, and the monitor reads just that."""
    base = checkpoint("llama")
    settings = dataclasses.replace(SETTINGS, steps=10)
    tuned = train(base, run_on(base, CHOSEN, settings), tmp_path / "run", "cpu")
    write_adapter(tmp_path / "adapter", tuned.adapter, tuned.transposed, "llama")
    merge(base, tuned.adapter, tmp_path / "merged", {"arm": "h-neurons"})
    identity = checkpoint_identity(tmp_path / "merged")
    neurons = neuron_set(identity)
    with pytest.raises(HQError, match="belongs to"):
        require_owner(neuron_set(checkpoint_identity(base)), tmp_path / "merged")
    require_owner(neurons, tmp_path / "merged")

    factors = {(n.layer, n.index): 0.5 for n in neurons.positive}
    bake(tmp_path / "merged", tmp_path / "baked", factors)
    assert read_record(tmp_path / "baked").factors == factors
    model = load(tmp_path / "baked")
    with TorchMonitor(model, neurons) as monitor:
        out = model.generate(**asked(PROMPT))
    tokens = tuple(step.token for step in monitor.steps)
    assert out[0, len(PROMPT) : -1].tolist() == list(tokens)

    exchange = PromptResponse(PROMPT, tokens)
    scores = []
    for alpha in (0.5, 1.0):
        with TorchBackend(tmp_path / "merged", "fp16", device="cpu") as backend:
            with backend.scale(dict.fromkeys(factors, alpha)):
                (batch,) = backend.trace([exchange], (neurons.cett,), (neurons.tokens,))
        scores.append(float(neurons.score(batch.features(neurons.cett, neurons.tokens))[0]))
    assert monitor.steps[-1].score == pytest.approx(scores[0], rel=1e-4)
    assert abs(scores[0] - scores[1]) > 1e-2

    ids = torch.tensor([exchange.ids])
    with torch.inference_mode(), TorchBackend(base, device="cpu") as backend:
        plain = backend.model(ids).logits.numpy()
        with backend.scale(factors):
            scaled = backend.model(ids).logits.numpy()
        peft.PeftModel.from_pretrained(backend.model, tmp_path / "adapter")
        with backend.scale(factors):
            expected = backend.model(ids).logits.numpy()
        found = model(ids).logits.numpy()
    assert np.abs(expected - scaled).max() > 0.05  # the adapter acts
    assert np.abs(scaled - plain).max() > 1e-3  # α acts
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected - scaled).max())
    undo(tmp_path / "baked", tmp_path / "restored")
    assert checkpoint_identity(tmp_path / "restored") == renamed(identity, "restored")


def renamed(identity, name):
    """The identity under the name of another folder."""
    return identity.model_copy(update={"name": name})
