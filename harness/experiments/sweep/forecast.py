"""Forecast of a sweep: the number of responses, and the time on this machine."""

import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict

from harness.experiments.sweep.plan import SweepPlan
from harness.experiments.sweep.trials import label, scenario
from harness.scenarios.base import Trial
from harness.stages import respond
from harness.stages.materials import Materials
from harness.store.jsonl import LOG_FILE
from harness.store.progress import Progress
from harness.studies.study import REFERENCE
from hq.backends.opening import max_rows

_TIMED = 32  # prompts


class Forecast(BaseModel):
    """The forecast of a complete sweep, without any earlier responses.

    It assumes that other precisions are as fast as the reference, and that answers to the study's
    own questions take as long as the responses of the fastest scenario.
    """

    model_config = ConfigDict(frozen=True)

    trials: dict[str, int]  # by scenario and kind
    variants: int  # combinations of neurons and α; all at α = 1 count once
    precisions: int
    responses: int  # to trials, and to the study's own questions
    seconds_a_response: dict[str, float]  # by scenario
    seconds: float

    def __str__(self) -> str:
        trials = ", ".join(f"{count} of {label}" for label, count in self.trials.items())
        each = ", ".join(f"{1e3 * s:.0f} ms {name}" for name, s in self.seconds_a_response.items())
        return (
            f"Trials: {trials}.\n"
            f"{self.responses:,} responses: {sum(self.trials.values())} trials × {self.variants} "
            f"variants × {self.precisions} precisions, and the study's own questions at each α.\n"
            f"About {self.seconds / 60:.0f} minutes ({each} per response, measured here on "
            f"{_TIMED} unscaled ones)."
        )


def forecast(m: Materials) -> Forecast:
    """Count trials and variants, and time some responses of each scenario."""
    plan, study = m.of(SweepPlan), m.study
    section, offered = plan.section, plan.offered
    counts = {
        label(name, kind): min(count, section.trials)
        for name, trials in offered.items()
        for kind, count in sorted(Counter(trial.kind for trial in trials).items())
    }
    variants = len(section.alphas) + section.draws * (len(section.control_alphas) - 1)
    answers = section.questions * len(section.alphas)
    responses = len(study.precisions) * (sum(counts.values()) * variants + answers)
    each = {name: _timed(m, plan, name, trials[:_TIMED]) for name, trials in offered.items()}
    of_trials = sum(count * variants * each[scenario(of)] for of, count in counts.items())
    seconds = len(study.precisions) * (of_trials + answers * min(each.values()))
    return Forecast(
        trials=counts,
        variants=variants,
        precisions=len(study.precisions),
        responses=responses,
        seconds_a_response=each,
        seconds=seconds,
    )


def _timed(m: Materials, plan: SweepPlan, name: str, trials: list[Trial]) -> float:
    """Return the seconds per response to these trials in one batch."""
    form, new = plan.form(name), plan.max_new_tokens(name)
    ids = [tuple(form.encode(m.tokenizer, trial.prompt)) for trial in trials]
    criteria = m.stop_criteria_of(form)
    backend = m.models.open(REFERENCE)
    with TemporaryDirectory() as folder, Progress(quiet=True).task("", len(ids), "") as task:
        log = Path(folder) / LOG_FILE
        started = time.perf_counter()
        respond.respond(log, lambda: backend, ids, [{}], criteria, new, task, max_rows(REFERENCE))
        return (time.perf_counter() - started) / len(ids)
