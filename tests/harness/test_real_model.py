"""Properties that tiny models cannot show, on the embedded model and the default study."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from harness.models.sources import resolve_model
from harness.stages import mapping, response_file
from harness.stages.materials import Materials
from harness.stages.sample import batches, consistency, record_of
from harness.store.progress import Progress
from harness.studies.study import Study
from hq.backends.transformers.backend import TorchBackend
from hq.models.ffn_weights import of_checkpoint
from hq.neurons.prompt_response import PromptResponse
from hq.tracing.sampling import sample

pytestmark = pytest.mark.slow
COMMITTED = Path(__file__).parents[2] / "results/smollm2-knowledge/responses.jsonl.gz"


@pytest.fixture(scope="module")
def materials():
    """The model, questions and prompts of the default study."""
    with Materials(Study.load("smollm2-knowledge")) as opened:
        yield opened


@pytest.fixture(scope="module")
def asked(materials):
    """Questions of one prompt length, so that they make one batch."""
    return max(batches(materials.prompted[:200]), key=len)[:12]


def responses(materials, asked, wanted=lambda tree: True):
    decoding = materials.models.open("fp16").decoding()
    decoding.share([p.ids for p in materials.prompted])
    prompts = [(p.question.id, p.ids) for p in asked]
    trees = sample(decoding, prompts, materials.sampling, materials.stop_criteria, wanted)
    return {tree.key: tree.finished for tree in trees}


def test_a_response_does_not_depend_on_what_is_sampled_beside_it(materials, asked):
    together = responses(materials, asked)
    alone = {}
    for question in asked[:4]:
        alone |= responses(materials, [question])
    dropped = {p.question.id for p in asked[4:]}
    beside_dropped = responses(materials, asked, lambda tree: tree.key not in dropped)
    for key, finished in alone.items():
        assert together[key] == finished == beside_dropped[key]


def test_the_committed_responses_are_those_of_the_sampler(materials):
    """A single token can differ between processors, and with it the responses that share it."""
    recorded = {line.id: line for line in response_file.read(COMMITTED).lines}
    drawn = np.random.default_rng(20261128).choice(sorted(recorded), 200, replace=False)
    decoding = materials.models.open("fp16").decoding()
    decoding.share([p.ids for p in materials.prompted])
    consistent = consistency(materials.prompted, materials.judge)
    questions = {p.question.id: p for p in materials.prompted}
    equal = total = 0
    for batch in batches([questions[id] for id in drawn.tolist()]):
        prompts = [(p.question.id, p.ids) for p in batch]
        settings, criteria = materials.sampling, materials.stop_criteria
        for tree in sample(decoding, prompts, settings, criteria, consistent):
            question = questions[tree.key].question
            found = _counts(record_of(tree, question, materials.judge, settings))
            stated = _counts(recorded[tree.key])
            equal += (found & stated).total()
            total += stated.total()
    assert total > 1000
    assert equal / total >= 0.99


def _counts(record):
    return Counter(r.ids for r in record.responses for _ in range(r.count))


def test_four_shots_make_it_answer(materials, asked):
    finished = [r for trees in responses(materials, asked).values() for r in trees]
    assert np.mean([not r.truncated and bool(r.text.strip()) for r in finished]) > 0.8


@pytest.mark.parametrize(("precision", "error"), [("fp16", 0), ("int8", 0.02), ("nf4", 0.15)])
def test_each_precision_reads_the_same_tokens(precision, error, materials, asked):
    texts = [PromptResponse(p.ids, p.ids[-3:]) for p in asked]
    with TorchBackend(
        resolve_model("smollm2"), "fp16", model_identity=materials.model
    ) as reference:
        norms = reference.norms
        before = np.concatenate([b.values for b in reference.trace(texts, ("contribution",))])
    with TorchBackend(
        resolve_model("smollm2"), precision, model_identity=materials.model
    ) as variant:
        off = np.linalg.norm(variant.norms - norms) / np.linalg.norm(norms)
        after = np.concatenate([b.values for b in variant.trace(texts, ("contribution",))])
    assert off <= error
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(
    ("precision", "low", "high"), [("int8", 0.004, 0.02), ("nf4", 0.08, 0.12), ("fp4", 0.1, 0.16)]
)
def test_a_precision_maps_onto_the_model_with_the_error_of_its_format(
    precision, low, high, materials, tmp_path
):
    variant = materials.models.open(precision).ffns()
    with Progress(quiet=True) as progress, progress.task("map", len(variant), "layers") as task:
        mapping.build(tmp_path, materials.model.space, of_checkpoint(materials.path), variant, task)
    layers = mapping.rows(tmp_path)
    assert {row.relation for row in layers} == {"identical"}
    assert all(low < row.error < high and row.found == 1 for row in layers)
