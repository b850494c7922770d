"""Experiment finetune: over-compliance, probe and capability of models that are tuned."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from harness.experiments.base import Experiment, estimate_cell
from harness.experiments.finetune import export
from harness.experiments.finetune.nodes import FinetuneNodes, read_training
from harness.experiments.finetune.plan import ARMS, BASE, FinetunePlan
from harness.experiments.finetune.rows import FinetuneRows, arms_and_base
from harness.experiments.finetune.section import FinetuneSection
from harness.experiments.finetune.tables import TABLES
from harness.experiments.sweep.section import SweepSection
from harness.scenarios.base import SCENARIOS
from harness.stages import mapping
from harness.stages.identify import NEURONS_FILE
from harness.stages.materials import Materials
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import Study
from harness.tables.schema import Row


class FinetuneExperiment(Experiment):
    """Directed fine-tuning of the H-Neurons, and two controls with the same budget."""

    name = "finetune"
    measures = "over-compliance, probe and capability after training with a penalty on H-Neurons"
    tables = TABLES
    committed = (NEURONS_FILE, export.CARD_FILE)
    section = FinetuneSection

    def check(self, m: Materials) -> None:
        """Raises HQError if the model, a package, the section or a scenario cannot be used."""
        m.of(FinetunePlan).check()

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare training and merging of every arm, and its measures at each precision."""
        plan = m.of(FinetunePlan)
        declared = FinetuneNodes(plan)
        return [
            *(mapping.node(m, precision) for precision in plan.precisions),
            declared.data(),
            *(declared.merge(arm) for arm in ARMS),
            *(
                node
                for arm in arms_and_base()
                for precision in plan.precisions
                for node in (
                    declared.outcomes(arm, precision),
                    declared.capability(arm, precision),
                    declared.identify(arm, precision),
                )
            ),
        ]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the rows of each table, by precision and arm."""
        plan = m.of(FinetunePlan)
        read = FinetuneRows(plan, outputs)
        tables: dict[str, list[Row]] = {name: [] for name in self.tables}
        for precision in plan.precisions:
            folder = outputs[mapping.node(m, precision)]
            mapping.require(folder, precision, read.probes.neurons)
            for arm in ARMS:
                tables["behaviour"] += read.behaviour(precision, arm)
                tables["detection"].append(read.detection(precision, arm))
            for arm in arms_and_base():
                tables["moved"].append(read.moved(precision, arm))
                tables["capability"].append(read.capability(precision, arm))
        for arm in ARMS:
            tables["training"] += read.training(arm)
        return tables

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write the study's neurons, the adapter, the merged checkpoint and its card."""
        plan = m.of(FinetunePlan)
        declared, read = FinetuneNodes(plan), FinetuneRows(plan, outputs)
        shutil.copyfile(declared.graph.neurons_file(outputs), folder / NEURONS_FILE)
        tuned, merged = (
            outputs[node] for node in (declared.train(export.ARM), declared.merge(export.ARM))
        )
        export.export(folder, m.path, m.model, tuned, merged)
        text = export.card(
            self.study_name(m.study),
            m.model,
            read_training(tuned),
            [row for p in plan.precisions for row in read.behaviour(p, export.ARM)],
            [read.capability(p, export.ARM) for p in plan.precisions],
        )
        export.write_card(folder, text)

    def definition(self, study: Study) -> dict[str, Any]:
        """Return the section, and what the scenarios take from [sweep]; of files only that."""
        section = FinetuneSection.of(study.sections.get(self.name, {}), "the section [finetune]")
        sweep = SweepSection.of(study.sections.get("sweep", {}), "the section [sweep]")
        scenarios = section.scenarios or sweep.scenarios
        behaviours = [name for name in SCENARIOS if SCENARIOS[name].questions is None]
        return {
            "finetune": section.model_dump(mode="json")
            | {
                "text": bool(section.text),
                "scenarios": list(scenarios or (study.scenario.name, *behaviours)),
                "sources": sorted(sweep.sources),
                "judge": sweep.judge,
                "form": sweep.form,
                "max_new_tokens": sweep.max_new_tokens,
                "choices": bool(sweep.choices),
            }
        }

    def facts(self, m: Materials, outputs: Outputs) -> dict[str, Any]:
        """Return the training texts by use and scenario, and what each arm penalised and kept."""
        declared = FinetuneNodes(m.of(FinetunePlan))
        of_arms = {arm: read_training(outputs[declared.train(arm)]) for arm in ARMS}
        return {
            "training_texts": of_arms[export.ARM].texts,
            "arms": {
                arm: {
                    "penalised_neurons": training.neurons,
                    "kept_step": training.kept_step,
                    "stopped_early": training.stopped,
                }
                for arm, training in of_arms.items()
            },
        }

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Group:
        """Return the change of over-compliance of every arm, and of the capability."""
        return Group(_behaviour(tables["behaviour"]), _capability(tables))


def _behaviour(rows: Sequence[Any]) -> Table:
    table = Table(
        title="Change of the share of responses that comply, after fine-tuning.\n95% intervals; "
        "h-neurons − matched is the effect of which neurons are penalised.",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    for column in ("precision", "scenario", *ARMS, "h-neurons\n− matched"):
        table.add_column(column, no_wrap=True)
    by_key = {(row.precision, row.scenario, row.arm): row for row in rows}
    for precision, scenario in dict.fromkeys((row.precision, row.scenario) for row in rows):
        arms = [by_key[precision, scenario, arm] for arm in ARMS]
        before = f"[dim]before {arms[0].before.value:.2f}[/dim]"
        table.add_row(
            precision,
            "\n".join([*scenario.split(":"), before]),
            *(estimate_cell(row.change, signed=True) for row in arms),
            estimate_cell(arms[0].beyond_matched, signed=True),
        )
    return table


def _capability(tables: Mapping[str, Sequence[Any]]) -> Table:
    table = Table(
        title="Capability, the study's probe on the same answers, and neurons that\nidentification "
        "on the tuned model has in common with the study's.",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    columns = (
        "right\nanswers",
        "perplexity",
        "AUROC of\nthe probe",
        "common\nneurons",
        "layer\nshift",
    )
    for column in ("precision", "arm", *columns):
        table.add_column(column, overflow="fold")
    detection = {(row.precision, row.arm): row for row in tables["detection"]}
    moved = {(row.precision, row.arm): row for row in tables["moved"]}
    for row in tables["capability"]:
        key = row.precision, row.arm
        probe = (
            detection[row.precision, ARMS[0]].before if row.arm == BASE else detection[key].after
        )
        shift = moved[key].layer_shift
        table.add_row(
            *key,
            estimate_cell(row.accuracy),
            f"{row.perplexity.value:.2f}",
            estimate_cell(probe),
            f"{moved[key].common} of {moved[key].neurons}",
            "—" if shift is None else f"{shift:+.1f}",
        )
    return table
