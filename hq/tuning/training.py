"""The training loop: cross-entropy, the penalty on neurons, and divergence from the reference.

    loss = CE + λ · penalty + β · KL

CE is the mean loss on right answers and refusals, the penalty is that of `contribution` on
over-compliant responses, and KL is KL(reference ‖ tuned) on neutral texts, in nats per token. There
is no dropout, so every step is a function of the LoRA, AdamW's moments and the step's number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, linear, log_softmax

from hq.backends.transformers.backend import usable_device
from hq.errors import HQError
from hq.models.architectures import down_projections
from hq.models.checkpoint import architecture_at
from hq.models.head import Head, body_of, head_of
from hq.models.placement import AUTO
from hq.neurons.cett import Measure, Span
from hq.neurons.prompt_response import PromptResponse
from hq.neurons.space import NeuronSpace
from hq.precisions import PRECISIONS
from hq.tuning.adapter import Adapter, attach
from hq.tuning.contribution import Chosen, Contributions, Reference
from hq.tuning.data import TuningData, batch_of
from hq.tuning.settings import TuningSettings
from hq.tuning.state import STATE_FILE, Progress, load_state, save_state

_RIGHT, _REFUSALS, _PENALISED, _NEUTRAL = range(4)  # streams of batches
_CLIP = 1.0  # largest norm of the gradient
_MEASURED = 16  # penalised texts, of which the contribution is measured at each checkpoint
_TARGETS = 64  # right answers that set the targets


@dataclass(frozen=True, slots=True)
class Tuned:
    """The outcome of a training run."""

    adapter: Mapping[
        str, Tensor
    ]  # A and B by PEFT's names, of the last checkpoint within the limit
    transposed: bool
    kept_step: int  # 0: no checkpoint was within the limit, and the LoRA changes nothing
    stopped: bool
    log: Sequence[Mapping[str, Any]]  # a record per step


@dataclass(frozen=True, slots=True)
class TuningRun:
    """Everything that a training run depends on, apart from the model.

    `measured` are the neurons whose contribution is logged, and `penalised` those whose
    contribution is penalised; none trains a plain LoRA.
    """

    data: TuningData
    settings: TuningSettings
    space: NeuronSpace
    measure: Measure
    span: Span
    measured: Int[np.ndarray, " k"]
    penalised: Int[np.ndarray, " m"]
    digest: str  # of model, data, neurons and settings; states of other runs are rejected

    def chosen(self, flat: Int[np.ndarray, " k"]) -> Chosen:
        """Return neurons in ascending order, with measure and span."""
        return Chosen(np.sort(flat), self.space, self.measure, self.span)


def train(
    path: Path,
    run: TuningRun,
    folder: Path,
    device: str | None = None,
    finished: Callable[[int, str], None] = lambda _steps, _note: None,
) -> Tuned:
    """Train a LoRA on a dense checkpoint, after the last whole state in `folder` if there is one.

    On a CPU, arithmetic is float32, and the same command gives the same bytes; on a GPU the frozen
    weights are bfloat16. Training stops if the loss on validation text rises by more than
    `settings.stop`, and the LoRA of the checkpoint before that is kept. `finished` is called with
    the number of steps since its last call, and a note.

    Raises HQError if the data lack a class, if the packages or the model do not allow a LoRA, or if
    the loss is not finite.
    """
    run.data.require()
    trainer = _Trainer(path, run, device)
    return trainer.train(folder, finished)


class _Losses(NamedTuple):
    """The terms of the loss in one step; the penalty is 0 where nothing is penalised."""

    ce: Tensor
    penalty: Tensor
    kl: Tensor

    def total(self, settings: TuningSettings) -> Tensor:
        return self.ce + settings.penalty_weight * self.penalty + settings.kl_weight * self.kl


class _Trainer:
    """A model with its LoRA, and what is measured of the reference before the first step."""

    def __init__(self, path: Path, run: TuningRun, device: str | None) -> None:
        self.run, self.settings = run, run.settings
        family = architecture_at(path)
        if device == AUTO:
            raise HQError("Fine-tuning runs on one device: use cuda or cpu in place of 'auto'.")
        self.device = usable_device(device)
        model: Any = PRECISIONS["fp16"].load(path, self.device)
        if self.device.type == "cuda":
            model = model.to(torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32)
        self.model = model.eval()  # no dropout
        decoder = model.get_decoder()
        self.head: Head = head_of(model, decoder)
        self.adapter: Adapter = attach(
            model, family, run.settings.targets, run.settings.rank, run.settings.seed
        )
        self.body: nn.Module = body_of(decoder)
        downs = down_projections(decoder, family)
        self.measured = Contributions(self.body, downs, run.chosen(run.measured))
        self.reference = self._reference(self.measured)
        self.penalised: Contributions | None = None
        if len(run.penalised):
            self.penalised = Contributions(self.body, downs, run.chosen(run.penalised))
            self.hinge = self._reference(self.penalised)
        self.reference_loss = self._validation_loss()
        parameters = list(self.adapter.parameters.values())
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)

    def train(self, folder: Path, finished: Callable[[int, str], None]) -> Tuned:
        resumed = load_state(folder, self.adapter, self.optimizer, self.run.digest)
        progress, kept = resumed or (Progress(), self.adapter.tensors())
        finished(progress.step, "")
        while progress.step < self.settings.steps and not progress.stopped:
            record = self._step(progress.step)
            progress.step += 1
            progress.log.append({"step": progress.step, **record})
            if progress.step % self.settings.every == 0 or progress.step == self.settings.steps:
                measured = self._measure()
                progress.log[-1] |= measured
                if measured["rise"] > self.settings.stop:
                    progress.stopped = True
                else:
                    progress.kept_step, kept = progress.step, self.adapter.tensors()
                save_state(folder, progress, self.adapter, self.optimizer, kept, self.run.digest)
            finished(1, f"loss {record['loss']:.3f}")
        (folder / STATE_FILE).unlink(missing_ok=True)
        return Tuned(
            kept, self.adapter.transposed, progress.kept_step, progress.stopped, progress.log
        )

    def _step(self, step: int) -> dict[str, float]:
        """Take one step, and return the terms of its loss."""
        losses = self._losses(step)
        loss = losses.total(self.settings)
        if not loss.isfinite():
            raise HQError(
                f"The loss is not finite in step {step + 1}: lower finetune.learning_rate or "
                "finetune.penalty_weight."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(list(self.adapter.parameters.values()), _CLIP)
        self.optimizer.step()
        terms = {"loss": loss, **losses._asdict()}
        return {name: float(term.detach()) for name, term in terms.items()}

    def _losses(self, step: int) -> _Losses:
        data, settings = self.run.data, self.settings

        def batch(texts: Sequence[PromptResponse], size: int, stream: int) -> list[PromptResponse]:
            return batch_of(texts, max(1, size), step, settings.seed, stream)

        half = settings.batch // 2
        supervised = [*batch(data.right, half, _RIGHT), *batch(data.refusals, half, _REFUSALS)]
        neutral = batch(data.neutral, half, _NEUTRAL)
        penalty = torch.zeros((), device=self.device)
        if self.penalised is not None:
            texts = batch(data.penalised, settings.batch, _PENALISED)
            values = self.penalised(self._padded(texts), texts)
            penalty = self.hinge.penalty(values, settings.penalty)
        return _Losses(self._cross_entropy(supervised).mean(), penalty, self._divergence(neutral))

    def _cross_entropy(self, texts: Sequence[PromptResponse]) -> Float[Tensor, " text"]:
        """The mean loss over the response tokens of each text, in nats."""
        logits = self._logits(texts)
        chosen = torch.tensor([token for text in texts for token in text.response])
        losses = cross_entropy(logits, chosen.to(self.device), reduction="none")
        parts = torch.split_with_sizes(losses, [len(text.response) for text in texts])
        return torch.stack([part.mean() for part in parts])

    def _divergence(self, texts: Sequence[PromptResponse]) -> Float[Tensor, ""]:
        """KL(reference ‖ tuned), mean over response tokens."""
        with torch.no_grad(), self.adapter.disabled():
            reference = log_softmax(self._logits(texts), dim=-1)
        tuned = log_softmax(self._logits(texts), dim=-1)
        return kl_div(tuned, reference, reduction="batchmean", log_target=True)

    def _logits(self, texts: Sequence[PromptResponse]) -> Float[Tensor, "token vocab"]:
        """Float32 logits that predict the response tokens, text after text."""
        states = self.body(self._padded(texts), use_cache=False).last_hidden_state
        hidden = torch.cat(
            [
                row[len(text.prompt) - 1 : len(text) - 1]
                for row, text in zip(states, texts, strict=True)
            ]
        )
        head = self.head
        bias = None if head.bias is None else head.bias.to(hidden)
        logits = linear(hidden, head.weight.to(hidden), bias).float() * head.factor
        return logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)

    def _padded(self, texts: Sequence[PromptResponse]) -> Int[Tensor, "text seq"]:
        ids = [torch.tensor(text.ids) for text in texts]
        return nn.utils.rnn.pad_sequence(ids, batch_first=True).to(self.device)

    @torch.no_grad()
    def _reference(self, contributions: Contributions) -> Reference:
        """Targets and units of neurons on right answers, of the model before the first step."""
        texts = self.run.data.right[:_TARGETS]
        return Reference.of(self._read(contributions, texts), self.settings.quantile)

    @torch.no_grad()
    def _measure(self) -> dict[str, float]:
        """What each checkpoint logs: the validation loss, its rise, and the contribution."""
        loss = self._validation_loss()
        texts = self.run.data.penalised[:_MEASURED]
        contribution = self.reference.relative(self._read(self.measured, texts))
        return {
            "validation_loss": loss,
            "rise": loss - self.reference_loss,
            "contribution": contribution,
        }

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Mean loss per token of the validation texts, in nats."""
        texts = self.run.data.validation
        tokens = np.array([len(text.response) for text in texts])
        batches = _batches(texts, self.settings.batch)
        losses = torch.cat([self._cross_entropy(batch) for batch in batches]).cpu().numpy()
        return float(losses @ tokens / tokens.sum())

    def _read(
        self, contributions: Contributions, texts: Sequence[PromptResponse]
    ) -> Float[Tensor, "text k"]:
        batches = _batches(texts, self.settings.batch)
        return torch.cat([contributions(self._padded(batch), batch) for batch in batches])


def _batches(texts: Sequence[PromptResponse], size: int) -> list[list[PromptResponse]]:
    return [list(texts[start : start + size]) for start in range(0, len(texts), size)]
