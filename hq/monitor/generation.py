"""Stands in for `model.generate` while monitors of the model are open."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, LogitsProcessor
from transformers.generation import GenerationMode

from hq.errors import HQError
from hq.monitor.stream import StepStreamer

if TYPE_CHECKING:
    from hq.monitor.torch import TorchMonitor

_PLAIN = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


class ObservedGenerate:
    """Calls the model's own `generate`, with a recorder of each monitor."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._generate = model.generate
        self._own = vars(model).get("generate")  # set on the model itself, by someone else
        self.monitors: list[TorchMonitor] = []

    def __call__(
        self,
        inputs: Any = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: list[LogitsProcessor] | None = None,
        **options: Any,
    ) -> Any:
        """As transformers' `generate`, whose result it returns.

        Raises HQError where rows would not be read token by token, in their order.
        """
        streamer = options.get("streamer")
        try:
            config = self._config(generation_config, options)
            _require_plain(config, options)
            mask = options.get("attention_mask")
            with ExitStack() as stack:
                recorders = [
                    stack.enter_context(monitor.recording(_ends(config), mask))
                    for monitor in self.monitors
                ]
                result = self._generate(
                    inputs,
                    generation_config=generation_config,
                    logits_processor=[*(logits_processor or []), *recorders],
                    **options,
                )
                for recorder in recorders:
                    recorder.keep(getattr(result, "sequences", result).shape[1])
        except BaseException as error:
            if isinstance(streamer, StepStreamer):
                streamer.fail(error)
            raise
        return result

    def step_aside(self) -> None:
        """Leaves the model as it was found."""
        del self._model.generate
        if self._own is not None:
            self._model.generate = self._own

    def _config(self, given: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig:
        """What transformers will make of them: arguments first, the model's own defaults last."""
        config = copy.deepcopy(given) if given is not None else GenerationConfig()
        config.update(**self._model.generation_config.to_dict(), defaults_only=True)
        config.update(**options)
        return config


@contextmanager
def observed(model: Any, monitor: "TorchMonitor") -> Iterator[None]:
    """Tells the monitor of every call of `model.generate`, while the context lasts."""
    standin = vars(model).get("generate")
    if not isinstance(standin, ObservedGenerate):
        standin = model.generate = ObservedGenerate(model)
    standin.monitors.append(monitor)
    try:
        yield
    finally:
        standin.monitors.remove(monitor)
        if not standin.monitors:
            standin.step_aside()


def _require_plain(config: GenerationConfig, options: dict[str, Any]) -> None:
    mode = config.get_generation_mode(options.get("assistant_model"))
    custom = options.get("custom_generate") is not None or config.cache_implementation == "paged"
    if custom or mode not in _PLAIN:
        name = "custom generation" if custom else mode.value.replace("_", " ")
        raise HQError(
            f"A monitor reads greedy and sampled answers token by token, not {name}: generate "
            "without it, or outside the monitor."
        )


def _ends(config: GenerationConfig) -> frozenset[int]:
    """The tokens that end a row, and what fills it afterwards."""
    stated = config.eos_token_id
    if stated is None:
        return frozenset()
    ends = set(stated) if isinstance(stated, (list, tuple)) else {stated}
    return frozenset(ends if config.pad_token_id is None else ends | {config.pad_token_id})
