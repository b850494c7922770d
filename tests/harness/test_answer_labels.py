"""The rule judge of answers beside a reader's labels, kind by kind.

tests/harness/labels/answers.jsonl holds questions, accepted answers and responses in our own words,
each with the verdict of a reader; `truncated` says that the token limit ended the response. They
were written beside the rules, so the agreement is that on known kinds of responses, not on an
unseen sample; `hq judge compare` measures the disagreement with a second judge on a study's own. Some
labels ask more than rules can do (a paraphrase, a Latin case ending, Fahrenheit): there the judge
errs, and the agreement says so. `pytest -s` prints it.
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
    found = defaultdict(list)
    for line in LABELS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = Question("q", row["question"], tuple(row["aliases"]), "r", ())
        verdict = RuleJudge().judge(row["response"], question, row.get("truncated", False))
        found[row["kind"]].append((row["label"], str(verdict), row["response"]))
    return found


def agreement(rows):
    return sum(label == verdict for label, verdict, _ in rows) / len(rows)


def test_the_rules_agree_with_the_reader_on_every_kind(judged, capsys):
    everything = [row for rows in judged.values() for row in rows]
    labels, verdicts, _ = zip(*everything, strict=True)
    with capsys.disabled():
        print()
        for kind, rows in sorted(judged.items()):
            ours = [row[0] for row in rows]
            theirs = [row[1] for row in rows]
            kappa = cohen_kappa_score(ours, theirs) if len({*ours, *theirs}) > 1 else 1.0
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


def test_no_kind_is_left_behind(judged):
    """Paraphrases are beyond rules; of every other kind at most a tenth may be wrong."""
    low = {kind: agreement(rows) for kind, rows in judged.items() if agreement(rows) < 0.9}
    assert set(low) <= {"paraphrase", "inflection"}, low


def test_what_the_rules_cannot_tell_is_rather_set_aside_than_given_the_other_verdict(judged):
    everything = [row for rows in judged.values() for row in rows]
    pairs = Counter((label, verdict) for label, verdict, _ in everything)
    opposite = pairs["right", "wrong"] + pairs["wrong", "right"]
    assert pairs["wrong", "right"] <= 0.005 * len(everything)
    assert opposite <= 0.02 * len(everything)
