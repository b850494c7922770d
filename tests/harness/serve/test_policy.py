"""The policy file, and the effect of its actions on answers."""

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


def test_a_policy_file(tmp_path):
    policy = load(tmp_path, WHOLE)
    assert (policy.domain, policy.alpha, policy.record) == ("medicine", (0.0, 1.5), "text")
    assert policy.rule("medicine").message == "Ask a doctor."
    assert policy.rule("facts").alpha == 0.25
    assert policy.rule("another").action == "annotate"
    assert (policy.limits.queue, policy.limits.seconds) == (3, 5.0)
    assert policy.digest != Policy.load(None).digest
    assert policy.digest == load(tmp_path, "# the same\n" + WHOLE).digest


def test_the_policy_in_the_docstring_is_valid(tmp_path):
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
def test_an_invalid_policy_names_the_key(tmp_path, text, words):
    with pytest.raises(HQError, match=words):
        load(tmp_path, text)


def test_a_missing_file(tmp_path):
    with pytest.raises(HQError, match=r"none\.toml cannot be read: No such file"):
        Policy.load(tmp_path / "none.toml")


def test_domains_must_be_in_the_bundle(tmp_path):
    with pytest.raises(HQError, match="'medicine', for which the bundle has no threshold"):
        load(tmp_path, WHOLE).require_thresholds(["all", "facts"])


class ScriptedGenerator:
    """Generates answers with given token scores; `first` with alpha 1, `second` with alpha 0.5."""

    def __init__(self, **scores):
        self.scores = {1.0: scores["first"], 0.5: scores.get("second", [])}
        self.alphas = []

    def generate(self, request, draft):
        self.alphas.append(draft.alpha)
        for n, score in enumerate(self.scores[draft.alpha]):
            reading = Reading(token=n, token_score=score, score=score, confidence=0.5, neurons=[])
            draft.tokens.append(Token(f"{draft.alpha:g} ", reading))
            yield draft.tokens[-1]
        draft.finish_reason = "stop"


STOP = StopCriteria(frozenset(), (), str)
REQUEST = GenerationRequest((1,), STOP, 9, SamplingSettings(seed=0), 1.0, "all")


def enforce(action, **scores):
    """Return (shown tokens, final answer, drafts, used alphas) of one answer with threshold 2."""
    rule = {"action": action, "alpha": 0.5, "message": "No."}
    policy = Policy.model_validate({"domains": {"all": rule}})
    generator, drafts = ScriptedGenerator(**scores), []
    enforcer = PolicyEnforcer(generator, policy, {"all": 2.0})
    *tokens, answer = enforcer.answer(REQUEST, drafts, lambda: None)
    assert isinstance(answer, FinalAnswer)
    assert all(isinstance(token, Token) for token in tokens)
    return tokens, answer, drafts, generator.alphas


@pytest.mark.parametrize("action", ["annotate", "regenerate", "block"])
def test_below_the_threshold_an_answer_passes(action):
    tokens, answer, _, alphas = enforce(action, first=[5.0, 1.9])
    assert len(tokens) == 2
    assert (answer.verdict, answer.decision, answer.finish_reason) == (
        "no hallucination",
        "pass",
        "stop",
    )
    assert alphas == [1.0]
    assert answer.text == "1 1 "


def test_a_score_at_the_threshold_is_past_it():
    tokens, answer, _, _ = enforce("annotate", first=[0.0, 2.0])
    assert len(tokens) == 2
    assert (answer.verdict, answer.decision) == ("hallucination", "annotate")


def test_a_blocked_answer_is_never_shown():
    tokens, answer, drafts, _ = enforce("block", first=[0.0, 2.0])
    assert tokens == []
    assert (answer.text, answer.finish_reason, answer.blocked) == ("No.", "content_filter", True)
    assert drafts[0].text == "1 1 "  # recorded in the audit log


@pytest.mark.parametrize(
    ("second", "alpha", "verdict"),
    [
        ([1.0], 0.5, "no hallucination"),
        ([2.5], 0.5, "hallucination"),  # lower, but still past the threshold
        ([3.0], 1.0, "hallucination"),  # not lower
        ([4.0], 1.0, "hallucination"),
        ([], 1.0, "hallucination"),  # empty
    ],
)
def test_the_answer_with_the_lower_score_is_kept(second, alpha, verdict):
    tokens, answer, _, alphas = enforce("regenerate", first=[0.0, 3.0], second=second)
    assert alphas == [1.0, 0.5]
    assert answer.draft.alpha == alpha
    assert (answer.verdict, answer.decision) == (verdict, "regenerate")
    assert answer.regenerated == (alpha == 0.5)
    assert tokens == answer.draft.tokens


def test_an_empty_answer_has_no_verdict():
    tokens, answer, _, alphas = enforce("block", first=[])
    assert (tokens, answer.verdict, answer.decision, answer.text) == ([], None, "pass", "")
    assert alphas == [1.0]


@pytest.mark.parametrize("allowed", range(5))
def test_an_exception_of_check_running_ends_the_answer(allowed):
    rule = {"action": "regenerate", "alpha": 0.5}
    policy = Policy.model_validate({"domains": {"all": rule}})
    drafts, remaining = [], [allowed]

    def check_running():
        if not remaining[0]:
            raise JobStopped("timed out")
        remaining[0] -= 1

    enforcer = PolicyEnforcer(
        ScriptedGenerator(first=[0.0, 3.0], second=[1.0]), policy, {"all": 2.0}
    )
    with pytest.raises(JobStopped):
        list(enforcer.answer(REQUEST, drafts, check_running))
    assert sum(len(draft.tokens) for draft in drafts) <= allowed


def test_a_draft_without_tokens_has_no_score():
    assert Draft(1.0).score is None
