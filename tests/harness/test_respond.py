"""Greedy responses under scaling: named by what acts, kept in a log, asked once."""

import pytest

from harness.stages.materials import Materials
from harness.stages.respond import PLAIN, GreedyResponse, prompt_name, respond, variant_of
from harness.store.progress import Progress
from harness.studies.study import REFERENCE, Study
from hq.tracing.sampling import Sampling, sample

NEW = 6


@pytest.fixture(scope="module")
def materials(tiny_study):
    """The tiny study's materials."""
    with Materials(Study.load(str(tiny_study))) as made:
        yield made


@pytest.fixture
def ask(materials, tmp_path):
    """Responses to prompts under variants, out of one log; says how often a model was needed."""
    opened = []

    def asked(prompts, variants):
        def backend():
            opened.append(1)
            return materials.models.open(REFERENCE)

        with Progress(quiet=True).task("", 1, "") as task:
            log = tmp_path / "log.jsonl"
            return respond(log, backend, prompts, variants, materials.stop_criteria, NEW, task)

    asked.opened, asked.log = opened, tmp_path / "log.jsonl"
    return asked


def test_variants_are_named_by_what_acts():
    assert variant_of({}) == variant_of({(0, 1): 1.0, (2, 3): 1.0}) == PLAIN
    assert variant_of({(0, 1): 0.5, (2, 3): 1.0}) == variant_of({(0, 1): 0.5})
    assert variant_of({(0, 1): 0.5, (2, 3): 0.0}) == variant_of({(2, 3): 0.0, (0, 1): 0.5})
    names = {variant_of(f) for f in ({}, {(0, 1): 0.5}, {(1, 0): 0.5}, {(0, 1): 0.25})}
    assert len(names) == 4


def test_responses_are_those_of_greedy_sampling_alone(materials, ask):
    prompts = [p.ids for p in materials.prompted[:20]]
    (found,) = ask(prompts, [{}])
    settings = Sampling(responses=1, temperature=0, max_new_tokens=NEW)
    for prompt, response in zip(prompts, found, strict=True):
        decoding = materials.models.open(REFERENCE).decoding()
        (tree,) = sample(decoding, [("", prompt)], settings, materials.stop_criteria)
        assert response.ids == tree.finished[0].ids
        assert response.text == tree.finished[0].text


def test_scaling_acts_and_alpha_one_does_not(materials, ask):
    prompts = [p.ids for p in materials.prompted[:20]]
    silenced = {(layer, i): 0.0 for layer in range(3) for i in range(128)}
    plain, one, zero = ask(prompts, [{}, dict.fromkeys(silenced, 1.0), silenced])
    assert plain == one
    assert [r.ids for r in plain] != [r.ids for r in zero]
    assert {r.variant for r in plain} == {PLAIN}
    assert {r.prompt for r in zero} == {prompt_name(p) for p in prompts}


def test_only_what_the_log_lacks_is_asked(materials, ask):
    prompts = [p.ids for p in materials.prompted[:10]]
    half = {(1, 2): 0.5}
    first = ask(prompts[:6], [{}, half])
    lines = ask.log.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    again = ask(prompts, [{}, half])
    assert [row[:6] for row in again] == first
    assert ask.log.read_text(encoding="utf-8").splitlines()[:12] == lines
    assert len(ask.log.read_text(encoding="utf-8").splitlines()) == 20
    needed = len(ask.opened)
    ask(prompts, [half])
    assert len(ask.opened) == needed


def test_a_line_that_a_kill_cut_off_is_asked_again(materials, ask):
    prompts = [p.ids for p in materials.prompted[:4]]
    whole = ask(prompts, [{}])
    text = ask.log.read_text(encoding="utf-8")
    ask.log.write_text(text[:-10], encoding="utf-8")
    assert ask(prompts, [{}]) == whole
    assert sorted(ask.log.read_text(encoding="utf-8").splitlines()) == sorted(text.splitlines())


def test_equal_prompts_are_asked_once(materials, ask):
    prompt = materials.prompted[0].ids
    ((first, second),) = ask([prompt, prompt], [{}])
    assert first == second
    assert isinstance(first, GreedyResponse)
    assert len(ask.log.read_text(encoding="utf-8").splitlines()) == 1
