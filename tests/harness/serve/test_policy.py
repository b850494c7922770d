"""The policy's file, and what its actions do with an answer."""

import pytest

from harness.serve.generation.answer import Draft, FinalAnswer, GenerationRequest, Reading, Token
from harness.serve.generation.queue import JobStopped
from harness.serve.generation.sampler import SamplingSettings
from harness.serve.policy.enforcer import PolicyEnforcer
from harness.serve.policy.file import DEFAULT_BLOCK_MESSAGE, Policy
from hq.errors import HQError
from hq.tracing.sampling import StopCriteria

WHOLE = """
domain = "medicine"
alpha = [0.0, 1.5]
form = "few-shot"
record = "text"

[domains.medicine]
action = "block"
message = "Ask a doctor."

[domains.facts]
action = "regenerate"
alpha = 0.25

[limits]
queue = 3
seconds = 5
"""


def load(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return Policy.load(path)


def test_a_policy_as_it_is_written(tmp_path):
    policy = load(tmp_path, WHOLE)
    assert (policy.domain, policy.alpha, policy.record) == ("medicine", (0.0, 1.5), "text")
    assert policy.rule("medicine").message == "Ask a doctor."
    assert policy.rule("facts").alpha == 0.25
    assert policy.rule("another").action == "annotate"
    assert (policy.limits.queue, policy.limits.seconds) == (3, 5.0)
    assert policy.digest != Policy.load(None).digest
    assert policy.digest == load(tmp_path, "# the same\n" + WHOLE).digest


def test_the_policy_in_the_documentation_is_one(tmp_path):
    import inspect

    from harness.serve.policy import file

    text = inspect.getdoc(file).split("\n\n", 1)[1]
    assert load(tmp_path, text).rule("medicine").action == "block"


def test_everything_has_a_default():
    policy = Policy.load(None)
    assert policy.rule("all").action == "annotate"
    assert policy.rule("all").message == DEFAULT_BLOCK_MESSAGE
    policy.require_thresholds(["all"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("domain = ", "not valid TOML"),
        ("colour = 1", "colour: Extra inputs"),
        ('record = "some"', "record: "),
        ("alpha = [1.5, 2]", "alpha: write"),
        ("alpha = [-1, 2]", "alpha.0"),
        ("[domains.all]\naction = 'drop'", "domains.all.action"),
        ("[domains.all]\nalpha = nan", "domains.all.alpha"),
        ("[limits]\nqueue = 0", "limits.queue"),
    ],
)
def test_what_no_policy_has_is_named(tmp_path, text, words):
    with pytest.raises(HQError, match=words):
        load(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(HQError, match=r"none\.toml cannot be read: No such file"):
        Policy.load(tmp_path / "none.toml")


def test_domains_are_the_bundles(tmp_path):
    with pytest.raises(HQError, match="'medicine', for which the bundle has no threshold"):
        load(tmp_path, WHOLE).require_thresholds(["all", "facts"])


class Written:
    """A writer whose answers are written beforehand: scores of each token, by α."""

    def __init__(self, **scores):
        self.scores = {1.0: scores["first"], 0.5: scores.get("second", [])}
        self.asked = []

    def generate(self, request, draft):
        self.asked.append(draft.alpha)
        for n, score in enumerate(self.scores[draft.alpha]):
            reading = Reading(token=n, token_score=score, score=score, confidence=0.5, neurons=[])
            draft.tokens.append(Token(f"{draft.alpha:g} ", reading))
            yield draft.tokens[-1]
        draft.finish_reason = "stop"


ENDING = StopCriteria(frozenset(), (), str)
ORDER = GenerationRequest((1,), ENDING, 9, SamplingSettings(seed=0), 1.0, "all")


def governed(action, **scores):
    """(tokens shown, answer, drafts, α asked for) of an answer under a rule, threshold 2."""
    rule = {"action": action, "alpha": 0.5, "message": "No."}
    policy = Policy.model_validate({"domains": {"all": rule}})
    writer, drafts = Written(**scores), []
    governor = PolicyEnforcer(writer, policy, {"all": 2.0})
    *tokens, answer = governor.answer(ORDER, drafts, lambda: None)
    assert isinstance(answer, FinalAnswer)
    assert all(isinstance(token, Token) for token in tokens)
    return tokens, answer, drafts, writer.asked


@pytest.mark.parametrize("action", ["annotate", "regenerate", "block"])
def test_below_the_threshold_an_answer_passes(action):
    tokens, answer, _, asked = governed(action, first=[5.0, 1.9])
    assert len(tokens) == 2
    assert (answer.verdict, answer.decision, answer.finish_reason) == (
        "no hallucination",
        "pass",
        "stop",
    )
    assert asked == [1.0]
    assert answer.text == "1 1 "


def test_the_threshold_itself_is_past_it():
    tokens, answer, _, _ = governed("annotate", first=[0.0, 2.0])
    assert len(tokens) == 2
    assert (answer.verdict, answer.decision) == ("hallucination", "annotate")


def test_a_blocked_answer_is_never_shown():
    tokens, answer, drafts, _ = governed("block", first=[0.0, 2.0])
    assert tokens == []
    assert (answer.text, answer.finish_reason, answer.blocked) == ("No.", "content_filter", True)
    assert drafts[0].text == "1 1 "  # what the audit log has


@pytest.mark.parametrize(
    ("second", "kept", "opinion"),
    [
        ([1.0], 0.5, "no hallucination"),
        ([2.5], 0.5, "hallucination"),  # better, and still past it
        ([3.0], 1.0, "hallucination"),  # no better
        ([4.0], 1.0, "hallucination"),
        ([], 1.0, "hallucination"),  # nothing said
    ],
)
def test_the_better_of_two_answers_is_kept(second, kept, opinion):
    tokens, answer, _, asked = governed("regenerate", first=[0.0, 3.0], second=second)
    assert asked == [1.0, 0.5]
    assert answer.draft.alpha == kept
    assert (answer.verdict, answer.decision) == (opinion, "regenerate")
    assert answer.regenerated == (kept == 0.5)
    assert tokens == answer.draft.tokens


def test_an_empty_answer_has_no_verdict():
    tokens, answer, _, asked = governed("block", first=[])
    assert (tokens, answer.verdict, answer.decision, answer.text) == ([], None, "pass", "")
    assert asked == [1.0]


@pytest.mark.parametrize("allowed", range(5))
def test_an_answer_ends_when_it_is_told_to(allowed):
    rule = {"action": "regenerate", "alpha": 0.5}
    policy = Policy.model_validate({"domains": {"all": rule}})
    drafts, left = [], [allowed]

    def goes_on():
        if not left[0]:
            raise JobStopped("timed out")
        left[0] -= 1

    governor = PolicyEnforcer(Written(first=[0.0, 3.0], second=[1.0]), policy, {"all": 2.0})
    with pytest.raises(JobStopped):
        list(governor.answer(ORDER, drafts, goes_on))
    assert sum(len(draft.tokens) for draft in drafts) <= allowed


def test_a_draft_without_tokens_has_no_score():
    assert Draft(1.0).score is None
