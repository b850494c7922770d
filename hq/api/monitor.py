"""The monitor of the Python API: the same verbs on transformers and llama.cpp."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from hq.api.model import DRAWS, AnswerInput, Model, PromptInput, sampling
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.monitor.reader import Choose
from hq.monitor.step import Step
from hq.neurons.neuron_set import NeuronSet
from hq.tracing.sampling import StopCriteria, TokenChooser

if TYPE_CHECKING:
    from hq.backends.llamacpp.backend import LlamaBackend


class EngineMonitor(Protocol):
    """What both engines' monitors do with token ids: TorchMonitor and LlamaMonitor."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...

    def answer(
        self,
        prompt: Sequence[int],
        ending: StopCriteria,
        max_new_tokens: int = 64,
        choose: Choose = ...,
    ) -> Iterator[Step]:
        """Generate an answer; yields a step per token."""
        ...

    def follow(self, prompt: Sequence[int], response: Iterable[int]) -> Iterator[Step]:
        """Read a response; yields a step per token."""
        ...

    def scale(self, alpha: float) -> AbstractContextManager[None]:
        """Scale the H-Neurons while the context lasts."""
        ...


class Monitor:
    """Watches the neurons of a set while a model answers, token by token. A context manager.

    It works on every model that `hq.load` and `hq.wrap` return. A `Step` has the token, the CETT of
    the set's neurons at it, the decision value of this token alone and that of the answer so far,
    which a threshold is for.

    On transformers, `engine` is a `TorchMonitor`, and every call of `model.generate` inside `with`
    is recorded too.

    Args:
        model: The model.
        neurons: A set that was found on this model, at whatever precision.
        tokens: Room for a prompt and its answer on llama.cpp, which allocates it once.

    Raises:
        HQError: The set belongs to another model, is empty, or has neurons that the model lacks.
    """

    def __init__(self, model: Model, neurons: NeuronSet, *, tokens: int = 2048) -> None:
        neurons.require_present(model.backend.missing, model.precision)
        self.neurons = neurons
        self._model = model
        self._steps: list[Step] = []
        self._ending: StopCriteria | None = None
        self._open = ExitStack()
        self.engine = _engine(model, neurons, tokens)

    def __enter__(self) -> "Monitor":
        self._open.enter_context(self.engine)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def steps(self) -> Sequence[Step]:
        """The steps of the last answer, up to now."""
        return tuple(self._steps)

    @property
    def score(self) -> float:
        """Decision value of the last answer, up to now. Raises HQError before its first token."""
        if not self._steps:
            raise HQError("No token was read yet: iterate over `answer` or `follow` first.")
        return self._steps[-1].score

    @property
    def text(self) -> str:
        """Text of the last answer, up to now, without the stop string that ended it."""
        ids = tuple(step.token for step in self._steps)
        ended = self._ending.split(ids) if ids and self._ending else None
        return ended[1] if ended else self._model.decode(ids)

    def answer(
        self,
        prompt: PromptInput,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        stop_at: float | None = None,
    ) -> Iterator[Step]:
        """Generate the answer to a prompt; yields a step per token, without the token that ends it.

        It is the answer that `Model.generate` returns with the same arguments.

        Args:
            prompt: The prompt, encoded as `Model` describes.
            max_new_tokens: Longest answer, in tokens.
            temperature: 0 is greedy.
            seed: Seed of sampling.
            stop: Strings that end the answer.
            stop_at: A decision value, such as a threshold of the set. The answer ends with the
                first token at which its score reaches it.

        Raises:
            HQError: As `Model.generate`, and for activations that are not finite.
        """
        settings = sampling(max_new_tokens, temperature, seed)
        ids, ending = self._model.encode(prompt), self._model.stop_criteria(stop)
        chooser = TokenChooser(DRAWS, settings)
        steps = self.engine.answer(ids, ending, max_new_tokens, chooser)
        return self._recorded(steps, ending, stop_at)

    def follow(self, prompt: PromptInput, answer: AnswerInput) -> Iterator[Step]:
        """Read an answer that was written elsewhere; yields a step per token.

        An answer that was generated with scaled neurons is scored here as the unscaled model reads
        it, for which thresholds are set.
        """
        ids, response = self._model.encode(prompt), self._model.encode_answer(answer)
        return self._recorded(self.engine.follow(ids, response), None, None)

    def scale(self, alpha: float) -> AbstractContextManager[None]:
        """Scale the H-Neurons of the set, h_i ← α·h_i, while the context lasts.

        Steps are then those of the scaled model. Raises HQError as `Model.scale` does.
        """
        return self._model.scale(self.neurons, alpha)

    def _recorded(
        self, steps: Iterator[Step], ending: StopCriteria | None, stop_at: float | None
    ) -> Iterator[Step]:
        recorded: list[Step] = []
        self._steps, self._ending = recorded, ending
        for step in steps:
            recorded.append(step)
            yield step
            if stop_at is not None and step.score >= stop_at:
                return


def _engine(model: Model, neurons: NeuronSet, tokens: int) -> EngineMonitor:
    """The monitor of the engine that runs the model."""
    backend: Any = model.backend
    if isinstance(backend, TorchBackend):
        from hq.monitor.torch import TorchMonitor

        return TorchMonitor(backend.model, neurons, backend.identity, backend.norms_of)
    from hq.monitor.llamacpp import LlamaMonitor

    llama: LlamaBackend = backend
    return LlamaMonitor(llama, neurons, tokens)
