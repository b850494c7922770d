"""A second study's questions beside those of a run: one model, nodes of their own."""

import shutil

import pytest

from harness.experiments.run import load_study
from harness.stages.graph import Graph
from harness.stages.materials import Materials
from harness.store.node import ordered
from harness.store.progress import Progress
from harness.store.runner import Runner
from harness.store.store import Store
from hq.errors import HQError


@pytest.fixture
def other_study(own_study):
    """A study of fewer questions, of which half are asked for its quota."""
    questions = own_study.parent / "questions.jsonl"
    lines = questions.read_text(encoding="utf-8").splitlines()[:200]
    fewer = own_study.parent / "fewer.jsonl"
    fewer.write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = own_study.read_text(encoding="utf-8")
    text = text.replace(str(questions), str(fewer)).replace('"tiny"', '"fewer"')
    path = own_study.parent / "fewer.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_model_is_shared_and_the_questions_are_not(own_study, other_study, finished, tmp_path):
    shutil.copytree(finished / "cache" / "store", tmp_path / "store")
    with Materials(load_study(str(own_study))) as m:
        other = m.with_questions_of(str(other_study))
        graph, others = Graph(m), Graph(other)
        nodes = [graph.trace("nf4"), others.trace("nf4")]
        names = [node.name for node in ordered(nodes)]
        assert "trace nf4" in names
        assert "trace nf4 fewer" in names
        assert len([name for name in names if name.startswith("map")]) == 2  # fp16 and nf4
        outputs = Runner(Store(tmp_path / "store"), Progress(quiet=True), m).run(nodes)
        asked = {sample.id for sample in others.read_samples(outputs)}
        assert asked
        assert asked <= {p.question.id for p in other.prompted}
        assert others.read_traces(outputs, "nf4").matrix("contribution", "answer").shape[0] == len(
            asked
        )
        assert other.models is m.models


def test_the_same_questions_are_no_other_scenario(own_study):
    m = Materials(load_study(str(own_study)))
    with pytest.raises(HQError, match="name a study of another scenario"):
        m.with_questions_of(str(own_study))
