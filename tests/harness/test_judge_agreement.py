"""Agreement of the rule judges with labels of readers who did not know the rules.

tests/harness/labels has labels of the embedded model's outputs, at all α. The committed table
harness/judges/agreement.csv is computed from the labels that were not used to improve a rule:

- falseqa and nonexist: the rule that finds responses off topic was tuned on the trials with an even
  digest of their id; the table has the other trials. All disagreements of the earlier rules, which
  found none of these responses, had been read before, so the halves are not perfectly blind.
- other kinds: the first labels, at FP16, were used (48 faitheval, 62 allowed, 53 forbidden, 59
  pushback, 63 suggestion); the table has the later ones, most at NF4, to some of the same trials.
- question sets: all pairs of answers.jsonl, which were written together with the rules.

The rates of a kind are measurable with rules if the 95% intervals of κ and of the balanced accuracy
exclude what a constant outcome reaches, 0 and 0.5. After a change of a rule, run
`python -m tests.harness.test_judge_agreement` and review the table.
"""

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score

from harness.judges import agreement
from harness.judges.agreement import AGREEMENT_FILE, Agreement, measure_agreement, rule_agreement
from harness.judges.base import Question
from harness.judges.rules import RuleJudge
from harness.scenarios import SCENARIOS
from hq.errors import HQError

LABELS = Path(__file__).parent / "labels"
TABLE = Path(agreement.__file__).with_name(AGREEMENT_FILE)
TUNED = {  # rows that were used to improve the rules
    "faitheval": 48,
    "jailbreak-allowed": 62,
    "jailbreak-forbidden": 53,
    "sycophancy-pushback": 59,
    "sycophancy-suggestion": 63,
}
QUESTIONS = "answers"
NAMES = (*TUNED, "falseqa", "nonexist")


def read_labels(name):
    return list(
        map(json.loads, (LABELS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
    )


def untuned(name):
    """The labelled responses of a kind that were not used to improve its rule."""
    rows = read_labels(name)
    if name in TUNED:
        return rows[TUNED[name] :]
    return [row for row in rows if hashlib.sha256(row["id"].encode()).digest()[0] % 2]


def judged(name, rows):
    """Labels, outcomes of the rules, and trials."""
    scenario = SCENARIOS[name.partition("-")[0]]
    trials = {trial.id: trial for trial in scenario.load()}
    outcomes = [
        str(scenario.judge(row["response"], trials[row["id"]], row["truncated"])) for row in rows
    ]
    return [row["label"] for row in rows], outcomes, [row["id"] for row in rows]


def judged_answers():
    """The same for the rule judge of answers, whose unit is the question."""
    rows, verdicts = read_labels(QUESTIONS), []
    for row in rows:
        question = Question("q", row["question"], tuple(row["aliases"]), "r", ())
        truncated = row.get("truncated", False)
        verdicts.append(str(RuleJudge().judge(row["response"], question, truncated)))
    return [row["label"] for row in rows], verdicts, [row["question"] for row in rows]


def computed():
    """The table: scenario, kind, and every field of the agreement."""
    rows = []
    for name in sorted(NAMES):
        scenario, _, kind = name.partition("-")
        rows.append((scenario, kind, measure_agreement(*judged(name, untuned(name)), "complied")))
    rows.append((QUESTIONS, "", measure_agreement(*judged_answers(), "wrong")))
    return rows


def table(rows):
    """The text of the table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scenario", "kind", *Agreement.model_fields])
    for scenario, kind, facts in rows:
        values = facts.model_dump().values()
        cells = [f"{v:.4f}" if isinstance(v, float) else v for v in values]
        writer.writerow([scenario, kind, *cells])
    return text.getvalue()


def test_the_committed_table_follows_from_the_labels(capsys):
    rows = computed()
    with capsys.disabled():
        print()
        for scenario, kind, facts in rows:
            print(f"{scenario:11} {kind:11} best constant {facts.constant:.2f}, {facts}")
    assert table(rows) == TABLE.read_text(encoding="utf-8")
    assert {path.stem for path in LABELS.iterdir()} - {QUESTIONS} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_outcome_is_not_measurable(name):
    labels, _, trials = judged(name, untuned(name))
    for outcome in ("complied", "resisted", "unclear"):
        facts = measure_agreement(labels, [outcome] * len(labels), trials, "complied")
        assert (facts.kappa, facts.balanced) == (0, 0.5)
        assert not facts.is_above_chance


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_scikit_learn(name):
    labels, outcomes, trials = judged(name, untuned(name))
    facts = measure_agreement(labels, outcomes, trials, "complied")
    assert facts.kappa == pytest.approx(cohen_kappa_score(labels, outcomes))
    complied = [[value == "complied" for value in side] for side in (labels, outcomes)]
    assert facts.balanced == pytest.approx(balanced_accuracy_score(*complied))


def test_outcomes_that_are_drawn_at_random_are_seldom_above_chance():
    """Independent outcomes, 4 responses per trial, a label of its own per trial: about 2.5%."""
    rng = np.random.default_rng(0)
    trials = np.repeat(np.arange(24), 4)
    above = 0
    for _ in range(400):
        labels = np.where(rng.random(24) < 0.7, "complied", "unclear")[trials]
        outcomes = np.where(rng.random(24) < 0.7, "complied", "unclear")[trials]
        if min(len(set(trials[labels == side])) for side in ("complied", "unclear")) < 2:
            continue
        above += measure_agreement(labels, outcomes, trials, "complied").is_above_chance
    assert above / 400 < 0.06


def test_labels_of_one_class_measure_nothing():
    with pytest.raises(HQError, match="label at least two of each"):
        measure_agreement(["complied"] * 4, ["complied"] * 4, range(4), "complied")


def test_a_scenario_without_labels_has_no_agreement():
    assert rule_agreement("toy") == {}


if __name__ == "__main__":
    TABLE.write_text(table(computed()), encoding="utf-8")
