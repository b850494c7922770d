"""The cache of compiled wheels in noxfile.py, with a session that compiles nothing."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def noxfile():
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Session:
    """Records the commands that it is asked to run, and writes the wheel of `pip wheel`."""

    def __init__(self):
        self.commands, self.fails = [], False

    def run(self, *command, env=None, external=False):
        if self.fails:
            raise RuntimeError("the compiler failed")
        self.commands.append((command, env))
        folder = Path(command[command.index("--wheel-dir") + 1])
        folder.mkdir()
        (folder / "llama_cpp_python-0-py3-none-any.whl").touch()


@pytest.fixture
def session(monkeypatch, tmp_path):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    return Session()


def test_a_wheel_is_compiled_once(noxfile, session, tmp_path):
    wheel = noxfile.llama_wheel(session)
    assert wheel.is_file()
    assert wheel.is_relative_to(tmp_path / "wheels")
    assert noxfile.llama_wheel(session) == wheel
    ((command, env),) = session.commands
    assert noxfile.pin("llama_cpp_python") in command
    assert "--no-cache-dir" in command  # pip would return a wheel of other flags
    assert set(env) == {"CFLAGS", "CXXFLAGS"}
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == [wheel.parent.name]


@pytest.mark.parametrize(
    "name", ["CFLAGS", "CXXFLAGS", "CMAKE_ARGS", "GGML_CUDA", "CXX", "CUDACXX"]
)
def test_other_flags_are_another_wheel(name, noxfile, session, monkeypatch):
    before = noxfile.llama_wheel(session)
    monkeypatch.setenv(name, "-DGGML_CUDA=on")
    assert noxfile.llama_wheel(session).parent != before.parent
    assert len(session.commands) == 2


@pytest.mark.parametrize("name", ["processor", "compiler", "pin"])
def test_another_machine_or_release_is_another_wheel(name, noxfile, session, monkeypatch):
    before = noxfile.llama_wheel(session)
    monkeypatch.setattr(noxfile, name, lambda *_: "another==1")
    assert noxfile.llama_wheel(session).parent != before.parent


def test_a_failed_compilation_leaves_no_wheel(noxfile, session, tmp_path):
    session.fails = True
    with pytest.raises(RuntimeError):
        noxfile.llama_wheel(session)
    assert not list((tmp_path / "wheels").iterdir())
    session.fails = False
    assert noxfile.llama_wheel(session).is_file()
