"""Bench `sampling`: tokens that the tree and the early stop save, with the same questions kept."""

import time
from collections.abc import Callable, Iterator, Sequence

from harness.bench.base import Row, bench
from harness.judges import judge
from harness.pipeline import Pipeline
from harness.places import cache_folder
from harness.progress import Progress
from harness.stages.sample import Prompted, batches, consistency
from harness.store import Store
from harness.study import REFERENCE, Study
from hq.sampling import Tree, sample


@bench("sampling")
def run(study: str = "smollm2-facts", questions: int = 384) -> list[Row]:
    """Samples the study's first questions twice: with the early stop, and to the end.

    `token_saving` is the tokens of all n responses to every question, each counted by itself and
    its end included, over the tokens that were computed with the early stop: the same questions,
    settings and random numbers. The quota, which saves more, plays no part; prompts, which are read
    once either way, are not counted. `tokens_per_second` counts computed tokens, in the time that
    reading the prompts is part of. Takes about 2 minutes.
    """
    store = Store(cache_folder() / "store")
    with Pipeline(Study.load(study), store, Progress(quiet=True)) as pipeline:
        asked = pipeline.prompted[:questions]
        whole, slow = _sample(pipeline, asked, lambda _: True)
        early, seconds = _sample(pipeline, asked, consistency(asked, judge("rules")))
    naive = sum(tree.naive for tree in whole)
    computed = sum(tree.generated for tree in early)
    same = _kept(whole, asked) == _kept(early, asked)
    note = f"{naive} tokens of {len(asked)} questions, {computed} computed"
    times = f"{seconds:.1f} s, and {slow:.1f} s to the end of every response"
    return [
        Row(name="token_saving", value=naive / computed, unit="x", goal=">= 5", note=note),
        Row(
            name="token_saving_by_tree_alone",
            value=naive / sum(tree.generated for tree in whole),
            unit="x",
        ),
        Row(
            name="retained_set_equal",
            value=float(same),
            unit="",
            goal=">= 1",
            note=f"{len(_kept(early, asked))} consistent questions",
        ),
        Row(name="tokens_per_second", value=computed / seconds, unit="1/s", note=times),
        Row(name="questions_per_second", value=len(asked) / seconds, unit="1/s"),
    ]


def _sample(
    pipeline: Pipeline, asked: Sequence[Prompted], wanted: Callable[[Tree], bool]
) -> tuple[list[Tree], float]:
    """The trees, and the seconds that they took, prefix included."""
    decoding, study = pipeline.backend(REFERENCE).decoding(), pipeline.study
    settings, ending = study.sampling.settings(study.seed), pipeline.ending

    def trees() -> Iterator[Tree]:
        for batch in batches(asked):
            yield from sample(
                decoding, [(p.question.id, p.ids) for p in batch], settings, ending, wanted
            )

    started = time.perf_counter()
    decoding.share([p.ids for p in asked])
    return list(trees()), time.perf_counter() - started


def _kept(trees: Sequence[Tree], asked: Sequence[Prompted]) -> dict[str, frozenset[str]]:
    """The consistent questions with their responses."""
    consistent = consistency(asked, judge("rules"))
    return {
        tree.key: frozenset(response.text for response in tree.finished)
        for tree in trees
        if not tree.abandoned and consistent(tree)
    }
