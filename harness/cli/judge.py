"""`hq judge compare`: a second judge on the responses of a study or of its sweep."""

from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import AsJson, Quiet, app, out, print_json
from harness.cli.study import DEFAULT_STUDY, ModelOption, Name, Overrides, Questions, planned

if TYPE_CHECKING:
    from harness.experiments.judge_comparison import JudgeComparison
    from harness.judges.base import Judge
    from harness.scenarios.judging import TrialJudge
    from harness.studies.study import Study

judge_app = typer.Typer(no_args_is_help=True, help="Compare two judges.")
app.add_typer(judge_app, name="judge")


@judge_app.command("compare")
def judge_compare(
    study: Name = DEFAULT_STUDY,
    model: ModelOption = None,
    questions: Questions = None,
    second: Annotated[
        str,
        typer.Option(
            help="The other judge: rules, or llm, an endpoint set by the environment variables "
            "HQ_JUDGE_URL, HQ_JUDGE_MODEL and (optional) HQ_JUDGE_KEY."
        ),
    ] = "llm",
    limit: Annotated[
        int,
        typer.Option(min=2, help="The largest number of questions, drawn by the study's seed."),
    ] = 200,
    of_sweep: Annotated[
        bool,
        typer.Option(
            "--sweep", help="Compare on the FP16 responses of the study's sweep, by scenario."
        ),
    ] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Judge a study's responses a second time, and report how often the judges disagree.

    The first judge is that of the study, or of its sweep. Missing responses are generated first.
    Example: `hq judge compare smollm2-knowledge --second llm --limit 500`.
    """
    from harness.judges.registry import make_judge
    from harness.scenarios.judging import make_trial_judge

    plan = planned(study, model, None, questions, overrides)
    if of_sweep:
        comparisons = _on_sweep(plan, make_trial_judge(second), quiet)
        if as_json:
            print_json({label: result.model_dump() for label, result in comparisons.items()})
            return
        for label, result in comparisons.items():
            out.print(f"[bold]{label}[/bold]")
            _show(result, "trials")
        return
    result = _on_answers(plan, make_judge(second), limit, quiet)
    if as_json:
        print_json(result.model_dump())
    else:
        _show(result, "questions")


def _on_answers(plan: "Study", other: "Judge", limit: int, quiet: bool) -> "JudgeComparison":
    from harness.experiments.judge_comparison import compare_judges, distinct_responses
    from harness.stages import responses as stage
    from harness.stages.materials import Materials
    from harness.store.opening import open_store
    from harness.store.progress import Progress
    from harness.store.runner import Runner

    store = open_store()
    with Progress(quiet=quiet) as progress, Materials(plan) as m:
        m.check()
        node = stage.node(m)
        folder = Runner(store, progress, m).run([node])[node]
        responses = distinct_responses(m, folder, limit)
        with progress.task("judge", len(responses), "responses") as task:
            return compare_judges(m.judge, other, responses, task)


def _on_sweep(plan: "Study", other: "TrialJudge", quiet: bool) -> "dict[str, JudgeComparison]":
    from harness.experiments.judge_comparison import compare_trial_judges, sweep_responses
    from harness.experiments.sweep.nodes import SweepNodes
    from harness.experiments.sweep.plan import SweepPlan
    from harness.stages.materials import Materials
    from harness.store.opening import open_store
    from harness.store.progress import Progress
    from harness.store.runner import Runner
    from harness.studies.study import REFERENCE

    store = open_store()
    with Progress(quiet=quiet) as progress, Materials(plan) as m:
        sweep = m.of(SweepPlan)
        sweep.check()
        m.check()
        declared = SweepNodes(sweep)
        nodes = [declared.respond(REFERENCE, name) for name in sweep.offered]
        responses = sweep_responses(declared, Runner(store, progress, m).run(nodes))
        with progress.task("judge", sum(map(len, responses.values())), "responses") as task:
            return {
                label: compare_trial_judges(sweep.judge, other, label, pairs, task)
                for label, pairs in responses.items()
            }


def _show(result: "JudgeComparison", asked: str) -> None:
    kappa = "not defined" if result.kappa is None else f"{result.kappa:.2f}"
    changed = result.labels_changed
    labels = "" if changed is None else f"; {changed} questions change their label"
    out.print(f"{result.first}\n{result.second}", highlight=False, soft_wrap=True)
    out.print(
        f"{result.responses} responses to {result.questions} {asked}: the judges disagree on "
        f"{result.rate} of them; κ {kappa}{labels}.",
        highlight=False,
        soft_wrap=True,
    )
    for pair, count in result.verdicts.items():
        out.print(f"  {pair}: {count}", highlight=False)
