"""A model as a user of transformers loads it, a set of its neurons, and what `generate` is asked."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf

from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet

PROMPT = (5, 6, 7, 8)


def neuron_set(model: ModelIdentity, cett: str = "sum", tokens: str = "answer") -> NeuronSet:
    """Three neurons of two layers with made-up weights."""
    places = [(0, 3, 1.0), (2, 7, 2.0), (2, 90, -1.0)]
    return NeuronSet(
        model=model,
        cett=cett,
        tokens=tokens,
        labels="1-vs-1",
        intercept=0.1,
        neurons=tuple(
            Neuron(layer=layer, index=index, weight=weight, mean=0.01, scale=0.02)
            for layer, index, weight in places
        ),
        thresholds={"youden": 0.0},
    )


def load(folder: Path, **options: Any) -> Any:
    """As a user of transformers does."""
    options = {"dtype": torch.float32} | options
    model = hf.AutoModelForCausalLM.from_pretrained(folder, **options)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model


def asked(*prompts: tuple[int, ...], new: int = 9, **options: Any) -> dict[str, Any]:
    """What `generate` is given: prompts padded on the left, greedy and endless unless said."""
    width = max(map(len, prompts))
    padded = [(0,) * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    given = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
    return given | {"max_new_tokens": new, "do_sample": False} | options


def scores(steps: Any) -> list[float]:
    return [step.score for step in steps]
