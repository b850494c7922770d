"""`hq survival`: which neurons a precision changes most, predicted from the FP16 model alone."""

from harness.cli.app import AsJson, Quiet, app
from harness.cli.study import (
    DEFAULT_STUDY,
    Into,
    Model,
    Name,
    Overrides,
    Precisions,
    Questions,
    Resume,
    execute,
    planned,
)


@app.command()
def survival(
    study: Name = DEFAULT_STUDY,
    model: Model = None,
    precisions: Precisions = None,
    questions: Questions = None,
    overrides: Overrides = None,
    into: Into = None,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Predict from FP16 alone which neurons each precision changes most: `hq run -e survival`.

    Weights and activity at FP16 predict the error of each neuron's contribution, and the change of
    its rank. Every prediction is for a layer and a precision that the fit has not seen.
    """
    chosen = planned(study, model, precisions, questions, overrides)
    execute(chosen, "survival", into, resume, quiet, as_json)
