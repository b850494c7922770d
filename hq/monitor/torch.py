"""A live monitor of a transformers model that the user loaded, at whatever precision."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import StoppingCriteria

from hq.backends.transformers.eager import eager
from hq.backends.transformers.hooks import ShareHooks, Watched, scaled
from hq.backends.transformers.loaded import dense_weight, loaded_identity
from hq.errors import HQError
from hq.models.architectures import architecture_of, down_projections
from hq.monitor.generation import observed
from hq.monitor.recorder import PromptTokens, Recorder
from hq.monitor.step import Step
from hq.neurons.cett import column_norms
from hq.neurons.neuron_set import ModelIdentity, NeuronSet


class TorchMonitor:
    """Watches a NeuronSet in every `model.generate` inside `with`: greedy or sampled, any batch.

    A context manager that may be entered again; several may watch one model. Only layers that have
    neurons of the set are hooked, and only while `generate` runs. What is kept is the CETT of these
    neurons at every token of the answers, once the model has read it. The token that ends an
    answer, or the last one before `max_new_tokens` cuts it off, is never read. A row is over when
    the stopping criteria of `generate` end it, whatever fills it afterwards.

    Exactly one forward pass may run per new token. `generate` raises HQError where it cannot be
    told which pass wrote the answer: for beam search, assisted and custom generation, for
    classifier-free guidance and any other code that runs the model meanwhile, and for compiled
    models, which call no hooks.

    `model_identity` says who the model is, where its norms cannot:
    hq.models.checkpoint.identity(folder).
    Raises HQError for a set of another model, and for weights that hq cannot dequantize.
    """

    def __init__(
        self, model: Any, neurons: NeuronSet, model_identity: ModelIdentity | None = None
    ) -> None:
        identity = model_identity or loaded_identity(model)
        neurons.require(identity)
        if not neurons.neurons:
            raise HQError("The neuron set is empty: there is nothing to watch.")
        self.neurons = neurons
        self._model = model
        self._space = identity.space
        self._downs = down_projections(model.get_decoder(), architecture_of(model.config))
        self._hooks = ShareHooks(list(self._watched()), neurons.cett)
        self._open = ExitStack()
        self._recorder: Recorder | None = None  # of the last `generate`
        self._generating = Lock()

    def __enter__(self) -> "TorchMonitor":
        self._open.enter_context(observed(self._model, self))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def rows(self) -> Sequence[Sequence[Step]]:
        """The steps of each row of the last `generate`, as far as it has come."""
        if self._recorder is None:
            raise HQError("Nothing was generated yet: call model.generate inside `with`.")
        return self._recorder.rows

    @property
    def steps(self) -> Sequence[Step]:
        """The steps of the last `generate`, which had one row. HQError where it had more."""
        if len(self.rows) > 1:
            raise HQError(f"There are {len(self.rows)} answers: read `rows`, not `steps`.")
        return self.rows[0] if self.rows else ()

    def stop_at(self, threshold: float) -> "StopAt":
        """What ends an answer once its score reaches the threshold: a stopping criterion."""
        return StopAt(self, threshold)

    def scale(self, alpha: float) -> AbstractContextManager[None]:
        """h_i ← α·h_i for the H-Neurons, while the context lasts; weights are never touched.

        Raises HQError for an α that is negative or not a number, and for a compiled model, which
        calls no hooks.
        """
        places = [(neuron.layer, neuron.index) for neuron in self.neurons.positive]
        return scaled(self._model, self._downs, dict.fromkeys(places, alpha), self._space)

    def live(self) -> Recorder:
        """The recorder of the `generate` that is under way. HQError when there is none."""
        if self._recorder is None or not self._generating.locked():
            raise HQError("This monitor is not watching: call model.generate inside its `with`.")
        return self._recorder

    @contextmanager
    def recording(self, prompt: PromptTokens) -> Iterator[Recorder]:
        """A recorder, for one call of `generate`.

        Raises HQError while another call is under way, and for a compiled model.
        """
        if not self._generating.acquire(blocking=False):
            raise HQError("The model generates already: a monitor watches one call at a time.")
        try:
            layers = {self._downs[neuron.layer] for neuron in self.neurons.neurons}
            with eager(self._model, layers), self._hooks:
                self._recorder = Recorder(self.neurons, self._hooks, prompt)
                yield self._recorder
        finally:
            self._generating.release()

    def _watched(self) -> Iterator[Watched]:
        for layer in sorted({neuron.layer for neuron in self.neurons.neurons}):
            dense = dense_weight(self._downs[layer], f"layer {layer}")
            indices = [neuron.index for neuron in self.neurons.neurons if neuron.layer == layer]
            yield Watched(
                layer=layer,
                down=self._downs[layer],
                norms=column_norms(dense),
                indices=torch.tensor(indices, device=dense.device),
            )


class StopAt(StoppingCriteria):  # type: ignore[misc]  # transformers is not followed
    """Ends each row whose score so far has reached a threshold.

    The score is that of the tokens read, so the row ends with the token chosen after them.
    """

    def __init__(self, monitor: TorchMonitor, threshold: float) -> None:
        self._monitor = monitor
        self._threshold = threshold

    def __call__(
        self, input_ids: Int[Tensor, "row seq"], scores: object, **_: object
    ) -> Bool[Tensor, " row"]:
        """Which rows end."""
        reached = [
            bool(row) and row[-1].score >= self._threshold for row in self._monitor.live().rows
        ]
        return torch.tensor(reached, device=input_ids.device)
