"""The runner: inputs first, one model at a time, keys by content, and a plan that says why."""

from dataclasses import replace

import pytest

from harness.store.node import Node, Stage, failed_node
from harness.store.progress import Progress
from harness.store.runner import Runner
from harness.store.store import Store
from hq.errors import HQError

QUIET = Progress(quiet=True)


class Ran(list):
    """The materials of these tests: which nodes were computed, in order."""


def make(work):
    work.materials.append(work.node.name)
    text = [str(work.parameters["value"])]
    text += [(folder / "out").read_text(encoding="utf-8") for folder in work.inputs.values()]
    (work.folder / "out").write_text("".join(text), encoding="utf-8")
    (work.folder / "about").write_text(work.node.name, encoding="utf-8")


STAGE = Stage("step", make)


def node(value, *inputs, precision=None, about="", stage=STAGE):
    named = {f"i{i}": one.output("out") for i, one in enumerate(inputs)}
    return Node(stage, {"value": value}, named, precision, about)


@pytest.fixture
def run(tmp_path):
    """Runs nodes in one store; returns the outputs and what was computed."""

    def call(*wanted):
        ran = Ran()
        return Runner(Store(tmp_path), QUIET, ran).run(wanted), ran

    return call


def test_inputs_come_first_and_a_second_run_computes_nothing(run):
    first = node("a", about="first")
    last = node("c", node("b", first, about="second"), first, about="last")
    outputs, ran = run(last)
    assert ran == ["step first", "step second", "step last"]
    assert (outputs[last] / "out").read_text(encoding="utf-8") == "cbaa"
    again, ran = run(last)
    assert ran == []
    assert again[last] == outputs[last]


def test_each_precision_is_run_at_one_stretch(run):
    nodes = [node(i, precision=p, about=str(i)) for i, p in enumerate(["x", "y", "x", "y"])]
    _, ran = run(*nodes)
    assert [name.split()[1] for name in ran] == ["x", "x", "y", "y"]


def test_what_may_forbid_the_rest_runs_first(run):
    given = replace(node("g", precision="y", about="given"), first=True)
    nodes = [node(i, precision="x", about=str(i)) for i in range(2)]
    _, ran = run(*nodes, node("z", given, precision="y", about="last"))
    assert ran[0] == "step y given"


def test_an_input_that_comes_out_the_same_keeps_what_follows(run):
    _, ran = run(node("z", node(1, about="one"), about="last"))
    assert ran == ["step one", "step last"]
    # Another parameter, the same content: "1" again.
    _, ran = run(node("z", node("1", about="one"), about="last"))
    assert ran == ["step one"]
    _, ran = run(node("z", node(2, about="one"), about="last"))
    assert ran == ["step one", "step last"]


def test_a_raised_version_and_another_package_compute_again(run):
    _, ran = run(node("a"))
    assert ran == ["step"]
    _, ran = run(node("a", stage=replace(STAGE, version=2)))
    assert ran == ["step"]
    _, ran = run(node("a", stage=replace(STAGE, packages=("numpy",))))
    assert ran == ["step"]


def test_a_failure_names_the_node_and_leaves_what_is_finished(run):
    def fail(work):
        raise HQError("Nothing fits.")

    good = node("a", about="good")
    with pytest.raises(HQError, match=r"Nothing fits\.") as error:
        run(node("b", good, about="bad", stage=replace(STAGE, make=fail)))
    assert failed_node(error.value) == "step bad"
    _, ran = run(good)
    assert ran == []


def test_a_finished_output_may_forbid_what_follows_each_time(run):
    def refuse(node, folder):
        raise HQError(f"{(folder / 'out').read_text(encoding='utf-8')} is not allowed.")

    for computed in (["step"], []):
        ran = Ran()
        with pytest.raises(HQError, match="a is not allowed"):
            _, ran = run(node("a", stage=replace(STAGE, verify=refuse)))
        assert ran == [] or ran == computed


def test_a_plan_says_what_is_there_missing_or_stale_and_why(run, tmp_path):
    def plan(*wanted):
        return {p.node.name: p for p in Runner(Store(tmp_path), QUIET, None).plan(wanted)}

    first = node("a", about="first")
    before = plan(node("b", first, about="last"))
    assert [p.state for p in before.values()] == ["missing", "waits"]
    assert before["step last"].why == "for step first"
    assert before["step first"].seconds is None
    run(node("b", first, about="last"))
    assert [p.state for p in plan(node("b", first, about="last")).values()] == ["there", "there"]
    changed = plan(node("c", node("b", first, about="last"), about="more"))
    assert changed["step more"].state == "missing"
    assert changed["step more"].seconds is not None
    stale = plan(node("x", about="first"))["step first"]
    assert (stale.state, stale.why) == ("stale", "parameters.value was a, is x")
    raised = plan(node("a", about="first", stage=replace(STAGE, version=3)))["step first"]
    assert raised.why == "version was 1, is 3"


def test_a_plan_and_the_run_after_it_stop_at_an_output_that_forbids_what_follows(run, tmp_path):
    def reject(node, folder):
        raise HQError("Not this one.")

    run(node("a", about="first"))
    first = node("a", about="first", stage=replace(STAGE, verify=reject))
    runner = Runner(Store(tmp_path), QUIET, Ran())
    for call in (runner.plan, runner.run):
        with pytest.raises(HQError, match="Not this one") as error:
            call([node("b", first, about="last")])
        assert failed_node(error.value) == "step first"


def test_two_nodes_of_one_name_are_rejected(run):
    with pytest.raises(HQError, match="Two different nodes are called 'step same'"):
        run(node("a", about="same"), node("b", about="same"))


def test_fresh_computes_each_node_once(run, tmp_path):
    first = node("a", about="first")
    last = node("c", node("b", first, about="second"), first, about="last")
    run(last)
    ran = Ran()
    runner = Runner(Store(tmp_path, fresh=True), QUIET, ran)
    assert [planned.state for planned in runner.plan([last])] == ["missing", "waits", "waits"]
    runner.run([last])
    assert ran == ["step first", "step second", "step last"]
