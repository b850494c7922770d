"""Replaces `model.generate` while monitors of the model are open."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, StoppingCriteriaList
from transformers.generation import GenerationMode

from hq.errors import HQError
from hq.monitor.recorder import PromptTokens, Recorder, Recording
from hq.monitor.stream import StepStreamer

_PLAIN = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_SIGNATURE = inspect.signature(GenerationMixin.generate)


class ObservedGenerate:
    """Calls the model's own `generate`, with a recorder of each monitor."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._generate = model.generate
        self._own = vars(model).get("generate")  # set on the model itself, by someone else
        self.monitors: list[Recording] = []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call transformers' `generate` with these arguments and return its result.

        Raises HQError for a mode of generation that does not read rows token by token, in order.
        """
        bound = _SIGNATURE.bind(self._model, *arguments, **options).arguments
        given = {key: value for key, value in bound.items() if key not in ("self", "kwargs")}
        given |= bound.get("kwargs", {})
        try:
            return self._observed(given)
        except BaseException as error:
            if isinstance(given.get("streamer"), StepStreamer):
                given["streamer"].fail(error)
            raise

    def step_aside(self) -> None:
        """Restore the model's own methods."""
        del self._model.generate, self._model.generate_batch
        if self._own is not None:
            self._model.generate = self._own

    def _observed(self, given: dict[str, Any]) -> Any:
        _require_plain(self._config(given), given)
        prompt = PromptTokens.of(given)
        with ExitStack() as stack:
            recorders = [
                stack.enter_context(monitor.recording(prompt)) for monitor in self.monitors
            ]
            stack.enter_context(_reporting_criteria(self._model, recorders))
            processors = [*(given.get("logits_processor") or []), *recorders]
            result = self._generate(**given | {"logits_processor": processors})
            for recorder in recorders:
                recorder.keep(getattr(result, "sequences", result).shape[1])
        return result

    def _config(self, given: dict[str, Any]) -> GenerationConfig:
        """The settings that transformers will use: arguments first, the model's defaults last."""
        config = copy.deepcopy(given.get("generation_config")) or GenerationConfig()
        config.update(**self._model.generation_config.to_dict(), defaults_only=True)
        config.update(**given)
        return config


class ReportingCriteria(StoppingCriteriaList):  # type: ignore[misc]  # transformers is not followed
    """The stopping criteria of one `generate`, which report to recorders which rows they end."""

    def __init__(self, criteria: StoppingCriteriaList, recorders: Sequence[Recorder]) -> None:
        super().__init__(criteria)
        self._recorders = recorders
        ends = [c.eos_token_id for c in criteria if hasattr(c, "eos_token_id")]
        tokens = frozenset(t for end in ends for t in torch.as_tensor(end).flatten().tolist())
        for recorder in recorders:
            recorder.ends = tokens

    def __call__(
        self, input_ids: Int[Tensor, "row seq"], scores: object, **options: object
    ) -> Bool[Tensor, " row"]:
        """Which rows are done."""
        done: Bool[Tensor, " row"] = super().__call__(input_ids, scores, **options)
        for recorder in self._recorders:
            recorder.note_done(done.cpu().numpy())
        return done


@contextmanager
def _reporting_criteria(model: Any, recorders: Sequence[Recorder]) -> Iterator[None]:
    """Have the stopping criteria of `generate` report to the recorders while the context lasts.

    They depend on settings of the model, the call and the tokenizer, which transformers merges.
    """
    inner, own = model._get_stopping_criteria, vars(model).get("_get_stopping_criteria")
    model._get_stopping_criteria = lambda *arguments, **options: ReportingCriteria(
        inner(*arguments, **options), recorders
    )
    try:
        yield
    finally:
        del model._get_stopping_criteria
        if own is not None:
            model._get_stopping_criteria = own


@contextmanager
def observed(model: Any, monitor: Recording) -> Iterator[None]:
    """Have the monitor record every call of `model.generate` while the context lasts."""
    standin = vars(model).get("generate")
    if not isinstance(standin, ObservedGenerate):
        standin = model.generate = ObservedGenerate(model)
        model.generate_batch = _refuse_batches
    standin.monitors.append(monitor)
    try:
        yield
    finally:
        standin.monitors.remove(monitor)
        if not standin.monitors:
            standin.step_aside()


def _refuse_batches(*_: object, **__: object) -> Any:
    raise HQError(
        "Continuous batching (`generate_batch`) mixes rows in its forward passes, so a monitor "
        "cannot tell them apart: call `generate`."
    )


def _require_plain(config: GenerationConfig, given: dict[str, Any]) -> None:
    mode = config.get_generation_mode(given.get("assistant_model"))
    unsupported = {
        "custom generation": given.get("custom_generate") is not None
        or config.cache_implementation == "paged",
        "classifier-free guidance": config.guidance_scale not in (None, 1),
        mode.value.replace("_", " "): mode not in _PLAIN,
    }
    name = next((name for name, applies in unsupported.items() if applies), None)
    if name is not None:
        raise HQError(
            f"A monitor reads greedy and sampled answers token by token, not {name}: generate "
            "without it, or outside the monitor."
        )
