"""A store that machines share, in a folder: written once, fetched, verified, errors in a sentence."""

import json
import os
import re

import pytest

from harness.store.opening import open_store
from harness.store.remote import RemoteStore
from harness.store.store import Store, read_record
from hq.errors import HQError

NAME = f"stage-{'1' * 16}"


@pytest.fixture
def machine(tmp_path):
    """Opens the shared folder as a machine with a cache of its own."""
    return lambda number, **options: RemoteStore(
        str(tmp_path / "shared"), tmp_path / f"machine-{number}", **options
    )


def making(text, calls=None):
    def make(folder):
        if calls is not None:
            calls.append(text)
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "out").write_text(text, encoding="utf-8")
        (folder / "speed").write_text(text, encoding="utf-8")

    return make


def build(store, text, calls=None):
    return store.build(
        NAME, {"stage": "stage", "node": "n"}, making(text, calls), frozenset({"speed"})
    )


def test_another_machine_finds_and_fetches_what_one_made(machine, tmp_path):
    made = build(machine(1), "x")
    other, calls = machine(2), []
    fetched = build(other, "y", calls)
    assert calls == []
    assert fetched == other.finished(NAME)
    assert fetched != made
    assert (fetched / "deep" / "out").read_text(encoding="utf-8") == "x"
    assert (fetched / "speed").exists()
    assert read_record(fetched) == read_record(made) == other.record(NAME)
    assert [record["node"] for record in other.records("stage")] == ["n"]
    # The record is that of a store on one machine.
    assert read_record(made).keys() == read_record(build(Store(tmp_path / "one"), "x")).keys()


@pytest.mark.parametrize("second", ["x", "y"])
def test_of_two_that_make_one_output_the_first_is_used(machine, tmp_path, caplog, second):
    one, two = machine(1), machine(2)

    def slow(folder):
        build(two, "x")
        making(second)(folder)

    late = one.build(NAME, {"stage": "stage", "node": "n"}, slow, frozenset({"speed"}))
    assert (late / "deep" / "out").read_text(encoding="utf-8") == "x"
    assert read_record(late) == read_record(two.finished(NAME))
    assert bool(caplog.messages) == (second == "y")
    folders = [path for path in (tmp_path / "shared" / NAME).iterdir() if path.is_dir()]
    assert len(folders) == 1


def test_an_output_that_was_not_published_is_published_at_the_next_use(machine, monkeypatch):
    def killed(self, name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RemoteStore, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            build(machine(1), "x")
    assert machine(2).finished(NAME) is None
    calls = []
    build(machine(1), "x", calls)
    assert calls == []
    assert machine(2).finished(NAME) is not None


def test_a_half_written_output_is_computed_again(machine, tmp_path):
    half = tmp_path / "shared" / NAME / "0123456789abcdef"
    half.mkdir(parents=True)
    (half / "deep").write_text("half", encoding="utf-8")
    calls = []
    build(machine(1), "x", calls)
    assert calls == ["x"]


@pytest.mark.parametrize("damage", ["change", "remove", "record"])
def test_a_damaged_output_is_reported(machine, tmp_path, damage):
    build(machine(1), "x")
    folder = tmp_path / "shared" / NAME
    (file,) = folder.glob("*/deep/out")
    if damage == "change":
        file.write_text("z", encoding="utf-8")
    elif damage == "remove":
        file.unlink()
    else:
        (folder / "node.json").write_text("{", encoding="utf-8")
    with pytest.raises(HQError, match=f"{NAME} is damaged .*: remove .*{NAME}, and run again"):
        machine(2).finished(NAME)
    assert not (machine(2).root / NAME).exists()


def test_fresh_makes_it_again_for_all(machine):
    build(machine(1), "x")
    build(machine(2), "y")
    calls = []
    fresh = machine(1, fresh=True)
    assert fresh.finished(NAME) is None
    build(fresh, "z", calls)
    assert calls == ["z"]
    # A machine with an older copy fetches the new one.
    assert (machine(2).finished(NAME) / "deep" / "out").read_text(encoding="utf-8") == "z"


def test_the_environment_names_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    assert open_store().root == tmp_path / "cache" / "store"
    monkeypatch.setenv("HQ_STORE", str(tmp_path / "shared"))
    build(open_store(), "x")
    assert (tmp_path / "shared" / NAME / "node.json").is_file()
    json.loads((tmp_path / "shared" / NAME / "node.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nope://x", "nope://x cannot be used: Protocol not known"),
        ("s3://", "names no folder or bucket|needs a package"),
        ("http://127.0.0.1:9/hq", "cannot be used|cannot write an object only if|needs a package"),
    ],
)
def test_a_wrong_store_is_one_sentence(hq, tiny_study, url, said):
    stopped = hq("plan", tiny_study, "--store", url)
    assert stopped.code == 2
    assert re.search(said, stopped.err)
    assert "Traceback" not in stopped.err


@pytest.mark.skipif(os.name == "nt", reason="this machine: Windows has other permissions")
def test_a_store_below_a_file_is_one_sentence(hq, tiny_study, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    stopped = hq("plan", tiny_study, "--store", tmp_path / "file" / "hq")
    assert stopped.code == 2
    assert "cannot be used" in stopped.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ray", "auto"), "need a store that all of them reach"),
        (("--workers", "2", "--ray", "auto"), "give one of them"),
    ],
)
def test_options_that_do_not_fit(hq, tiny_study, options, said):
    stopped = hq("run", tiny_study, *options)
    assert stopped.code == 2
    assert said in stopped.err
