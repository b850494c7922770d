"""Comparison of two judges: disagreement, κ and changed labels."""

import json
import shutil
from collections.abc import Iterator

import pytest
from sklearn.metrics import cohen_kappa_score

from harness.experiments.judge_comparison import ComparedResponse, compare_judges
from harness.judges.agreement import cohen_kappa
from harness.judges.base import Question
from harness.judges.llm import LLMJudge
from harness.judges.rules import RuleJudge
from harness.store.progress import Progress
from hq.errors import HQError
from tests.harness.judge_endpoint import Endpoint


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.close()


def _said(number: int, text: str) -> ComparedResponse:
    question = Question(f"q{number}", f"What is {number}?", ("Paris",), "r", ())
    return ComparedResponse(question, text, truncated=False, component=f"q{number}")


def _lenient(message: str) -> str:
    """A judge that accepts any answer with a P."""
    response = message.rsplit("Response: ", 1)[1]
    return "RIGHT" if "P" in response else "UNCERTAIN" if "know" in response else "WRONG"


def test_two_judges_on_the_same_responses(endpoint: Endpoint) -> None:
    endpoint.answer = _lenient
    texts = ["Paris", "Lyon", "Prague", "I don't know.", "It is Paris.", "Paris"]
    said = [*map(_said, range(6), texts), _said(5, "Lyon")]
    with LLMJudge(endpoint.url, "m") as llm, Progress(quiet=True).task("", 7, "") as task:
        found = compare_judges(RuleJudge(), llm, said, task=task)
    assert task.done == 7
    assert (found.responses, found.questions) == (7, 6)
    assert found.rate.value == pytest.approx(1 / 7)  # Prague
    assert found.rate.n == 6
    assert found.rate.low < 1 / 7 < found.rate.high
    assert found.verdicts == {
        "right, right": 3,
        "uncertain, uncertain": 1,
        "wrong, right": 1,
        "wrong, wrong": 2,
    }
    assert found.labels_changed == 1
    ours, theirs = zip(
        *([("right",) * 2] * 3 + [("uncertain",) * 2, ("wrong", "right")] + [("wrong",) * 2] * 2),
        strict=True,
    )
    assert found.kappa == pytest.approx(cohen_kappa_score(ours, theirs))
    assert found.first.startswith("rules, version")
    assert found.second.startswith("llm m at")


def test_kappa_of_judges_with_a_single_verdict() -> None:
    assert cohen_kappa([("right", "right")] * 3) is None
    assert cohen_kappa([("right", "wrong"), ("wrong", "right")]) == -1


def test_nothing_to_compare() -> None:
    with Progress(quiet=True).task("", 0, "") as task, pytest.raises(HQError, match="no finished"):
        compare_judges(RuleJudge(), RuleJudge(), [], task)


def test_the_responses_of_a_study_are_judged_again(
    hq, tiny_study, finished, tmp_path, endpoint, monkeypatch
):
    shutil.copytree(finished / "cache", tmp_path / "cache")
    monkeypatch.setenv("HQ_JUDGE_URL", endpoint.url)
    monkeypatch.setenv("HQ_JUDGE_MODEL", "m")
    endpoint.script = [(200, "WRONG")]
    outcome = hq("judge", "compare", tiny_study, "--limit", 40, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["questions"] == 40
    assert 0 < found["rate"]["value"] < 1
    counted = found["verdicts"]
    agreed = sum(n for pair, n in counted.items() if len(set(pair.split(", "))) == 1)
    assert found["rate"]["value"] == pytest.approx(1 - agreed / found["responses"])
    assert counted["right, wrong"] > 0
    assert found["labels_changed"] > 0
    text = hq("judge", "compare", tiny_study, "--limit", 40)
    assert f"{found['labels_changed']} questions change their label" in text.out
    assert "sample responses" not in text.err  # they were at hand


def test_a_missing_endpoint_is_one_sentence(hq, tiny_study, monkeypatch):
    monkeypatch.delenv("HQ_JUDGE_URL", raising=False)
    outcome = hq("judge", "compare", tiny_study)
    assert outcome.code == 2
    assert "HQ_JUDGE_URL" in outcome.err
