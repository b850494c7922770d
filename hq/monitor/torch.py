"""A live monitor of a loaded transformers model, at any precision."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import StoppingCriteria

from hq.backends.base import require_length
from hq.backends.transformers.activations import layer_norms
from hq.backends.transformers.decoding import TorchDecoding
from hq.backends.transformers.eager import eager
from hq.backends.transformers.experts import verify_experts
from hq.backends.transformers.hooks import ShareHooks, Watched, scaled
from hq.backends.transformers.loaded import dense_weight, loaded_identity
from hq.errors import HQError
from hq.models.architectures import architecture_of, down_projections
from hq.models.auto import context_length
from hq.models.placement import device_of, require_supported
from hq.monitor.generation import observed
from hq.monitor.reader import Choose, follow_steps, generate_steps
from hq.monitor.recorder import PromptTokens, Recorder
from hq.monitor.step import Step
from hq.neurons.neuron_set import ModelIdentity, NeuronSet
from hq.tracing.sampling import StopCriteria

NormsOf = Callable[[int], Float[Tensor, " d_ff"]]  # of a layer, on the device that computes


class TorchMonitor:
    """Watches a NeuronSet in every `model.generate` inside `with`: greedy or sampled, any batch.

    A context manager that may be entered again; several monitors may watch one model. Only layers
    that have neurons of the set are hooked, and only while `generate` runs. The monitor keeps the
    CETT of these neurons at every token of the answers that the model has read. The model never
    reads the token that ends an answer, nor the last one before `max_new_tokens` cuts it off. A row
    is over when the stopping criteria of `generate` end it, whatever fills it afterwards.

    Exactly one forward pass may run per new token. `generate` raises HQError if the monitor cannot
    know which pass wrote the answer: for beam search, assisted and custom generation, for
    classifier-free guidance and any other code that runs the model meanwhile, and for compiled
    models, which call no hooks.

    `answer` and `follow` generate or read one answer without `generate`; no `with` is needed.

    `model_identity` names the model if its norms cannot:
    hq.models.checkpoint.checkpoint_identity(folder).
    `norms_of` returns ‖W_down[:, i]‖₂ of a layer, for weights that only the caller can dequantize.
    Raises HQError for a set of another model, for weights that hq cannot dequantize, and for a
    model on Apple's GPU.
    """

    def __init__(
        self,
        model: Any,
        neurons: NeuronSet,
        model_identity: ModelIdentity | None = None,
        norms_of: NormsOf | None = None,
    ) -> None:
        require_supported(device_of(model.get_input_embeddings()))
        identity = model_identity or loaded_identity(model)
        neurons.require(identity)
        if not neurons.neurons:
            raise HQError("The neuron set is empty: there is nothing to watch.")
        self.neurons = neurons
        self._model = model
        self._name, self._space = identity.name, identity.space
        self._downs = down_projections(model.get_decoder(), architecture_of(model.config))
        verify_experts(self._downs)
        norms = norms_of or self._loaded_norms
        self._watched = Watched.of(neurons.flat, self._space, self._downs, norms)
        self._hooks = ShareHooks(self._watched, neurons.cett)
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
        """The steps of each row of the last `generate`, up to now."""
        if self._recorder is None:
            raise HQError("Nothing was generated yet: call model.generate inside `with`.")
        return self._recorder.rows

    @property
    def steps(self) -> Sequence[Step]:
        """The steps of the last `generate`, which had one row. Raises HQError if it had more."""
        if len(self.rows) > 1:
            raise HQError(f"There are {len(self.rows)} answers: read `rows`, not `steps`.")
        return self.rows[0] if self.rows else ()

    def stop_at(self, threshold: float) -> "StopAt":
        """A stopping criterion for `generate`: ends a row when its score reaches the threshold."""
        return StopAt(self, threshold)

    def scale(self, alpha: float) -> AbstractContextManager[None]:
        """h_i ← α·h_i for the H-Neurons while the context lasts; weights do not change.

        Raises HQError if α is negative or not a number, and for a compiled model, which calls no
        hooks.
        """
        positions = [neuron.position for neuron in self.neurons.positive]
        return scaled(self._model, self._downs, dict.fromkeys(positions, alpha), self._space)

    def live(self) -> Recorder:
        """The recorder of the `generate` that is running. Raises HQError if none is."""
        if self._recorder is None or not self._generating.locked():
            raise HQError("This monitor is not watching: call model.generate inside its `with`.")
        return self._recorder

    @contextmanager
    def recording(self, prompt: PromptTokens) -> Iterator[Recorder]:
        """A recorder for one call of `generate`.

        Raises HQError while another call is running, and for a compiled model.
        """
        if not self._generating.acquire(blocking=False):
            raise HQError("The model generates already: a monitor watches one call at a time.")
        try:
            with eager(self._model, [layer.down for layer in self._watched]), self._hooks:
                self._recorder = Recorder(self.neurons, self._hooks, prompt)
                yield self._recorder
        finally:
            self._generating.release()

    def answer(
        self,
        prompt: Sequence[int],
        ending: StopCriteria,
        max_new_tokens: int = 64,
        choose: Choose = lambda logits: int(logits.argmax()),
    ) -> Iterator[Step]:
        """Generate an answer; yields a step per token, without the token that ends it.

        Between steps no hook is on the model. Raises HQError for a prompt that is empty or too
        long, for a compiled model, and if other code runs the model during a step.
        """
        reader = self._reader(prompt, max_new_tokens)
        return generate_steps(reader, self.neurons, prompt, ending, max_new_tokens, choose)

    def follow(self, prompt: Sequence[int], response: Iterable[int]) -> Iterator[Step]:
        """Read a response that is generated elsewhere; yields a step per token, as it comes.

        Raises HQError as `answer` does.
        """
        return follow_steps(self._reader(prompt, 0), self.neurons, prompt, response)

    def _reader(self, prompt: Sequence[int], new: int) -> "_TorchReader":
        if not len(prompt):
            raise HQError("The prompt is empty: it needs a token at least.")
        limit = context_length(self._model.config)
        require_length("The prompt", len(prompt), limit, self._name, new)
        return _TorchReader(self._model, self._watched, self.neurons)

    def _loaded_norms(self, layer: int) -> Float[Tensor, " width"]:
        return layer_norms(self._downs[layer], lambda down: dense_weight(down, f"layer {layer}"))


class _TorchReader:
    """Reads one answer on torch. Hooks are on the model only during a step."""

    def __init__(self, model: Any, watched: Sequence[Watched], neurons: NeuronSet) -> None:
        self._model = model
        self._downs = [layer.down for layer in watched]
        self._hooks = ShareHooks(watched, neurons.cett)
        self._decoding = TorchDecoding(model, device_of(model.get_input_embeddings()))

    def read(
        self, prompt: Sequence[int]
    ) -> tuple[Float[np.ndarray, "token k"], Float[np.ndarray, " vocab"]]:
        """Read a prompt: CETT at each of its tokens, and the logits after it."""
        return self._observed(lambda: self._decoding.start([tuple(prompt)]), len(prompt))

    def append(self, token: int) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " vocab"]]:
        """Read one more token: CETT at it, and the logits after it."""
        row = np.array([0])
        cett, logits = self._observed(lambda: self._decoding.step(row, np.array([token])), 1)
        return cett[0], logits

    def _observed(
        self, decode: Callable[[], Float[Tensor, "row vocab"]], tokens: int
    ) -> tuple[Float[np.ndarray, "token k"], Float[np.ndarray, " vocab"]]:
        with eager(self._model, self._downs), self._hooks:
            logits = decode()
            read = sum(self._hooks.passes())
            if read != tokens:
                raise HQError(
                    f"The model read {read} tokens in a step of {tokens}: other code ran it at the "
                    "same time; generate in one thread."
                )
            cett = self._hooks.collect(1)[0]
        return cett, logits[0].float().cpu().numpy()


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
