"""Agreement of the rule judge of answers with a reader's labels, for each kind of response.

tests/harness/labels/answers.jsonl has invented questions, accepted answers and responses, each
with a reader's verdict; `truncated` says that the token limit ended the response. They were written
together with the rules, so the agreement is on known kinds of responses, not on an unseen sample;
`hq judge compare` measures the disagreement with a second judge on a study's own responses. Some
labels are beyond rules (a paraphrase, a Latin case ending, Fahrenheit) and count as errors.
`pytest -s` prints the agreement.
"""

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score

from harness.judges.base import Question
from harness.judges.rules import RuleJudge

LABELS = Path(__file__).parent / "labels" / "answers.jsonl"
FLOOR = 0.95  # balanced accuracy over the verdicts; a constant verdict has 1 / their number


@pytest.fixture(scope="module")
def judged() -> dict[str, list[tuple[str, str, str]]]:
    """Label, verdict and response of every row, by kind."""
    by_kind = defaultdict(list)
    for line in LABELS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = Question("q", row["question"], tuple(row["aliases"]), "r", ())
        verdict = RuleJudge().judge(row["response"], question, row.get("truncated", False))
        by_kind[row["kind"]].append((row["label"], str(verdict), row["response"]))
    return by_kind


def agreement(rows):
    return sum(label == verdict for label, verdict, _ in rows) / len(rows)


def test_the_rules_agree_with_the_reader_on_every_kind(judged, capsys):
    everything = [row for rows in judged.values() for row in rows]
    labels, verdicts, _ = zip(*everything, strict=True)
    with capsys.disabled():
        print()
        for kind, rows in sorted(judged.items()):
            reader = [row[0] for row in rows]
            judge = [row[1] for row in rows]
            kappa = cohen_kappa_score(reader, judge) if len({*reader, *judge}) > 1 else 1.0
            print(f"{kind:16} n = {len(rows):3}, agreement {agreement(rows):.2f}, κ {kappa:.2f}")
        print(
            f"{'all':16} n = {len(everything)}, agreement {agreement(everything):.3f}, "
            f"κ {cohen_kappa_score(labels, verdicts):.3f}, "
            f"balanced accuracy {balanced_accuracy_score(labels, verdicts):.3f}"
        )
    assert len(everything) >= 300
    constant = 1 / len(set(labels))
    assert balanced_accuracy_score(labels, verdicts) >= FLOOR > constant
    assert cohen_kappa_score(labels, verdicts) >= 0.93


def test_every_kind_has_few_errors(judged):
    """At most a tenth of every kind may be wrong, except paraphrases, which rules cannot judge."""
    low = {kind: agreement(rows) for kind, rows in judged.items() if agreement(rows) < 0.9}
    assert set(low) <= {"paraphrase", "inflection"}, low


def test_undecidable_responses_are_set_aside_rather_than_judged_wrongly(judged):
    everything = [row for rows in judged.values() for row in rows]
    pairs = Counter((label, verdict) for label, verdict, _ in everything)
    opposite = pairs["right", "wrong"] + pairs["wrong", "right"]
    assert pairs["wrong", "right"] <= 0.005 * len(everything)
    assert opposite <= 0.02 * len(everything)
