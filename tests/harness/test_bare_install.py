"""An installation without extras: every command shows its help, and a missing extra is one sentence.

`nox -s bare` runs this file on a real one: HQ_BARE is the Python that has it.
"""

import json
import os
import subprocess
import sys
import tomllib

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.cli import app
from harness.models.requirements import EXTRAS
from tests import bare

# Runs `hq` once for each list of arguments on stdin, in one process: importing torch takes seconds.
RUNNER = """
import contextlib, io, json, sys, traceback
from harness.cli import main

outcomes = []
for arguments in json.load(sys.stdin):
    sys.argv, out, err = ["hq", *arguments], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            code = traceback.format_exc()
    outcomes.append([code, out.getvalue(), err.getvalue()])
json.dump(outcomes, sys.stdout)
"""


# Imports the modules that stdin lists; prints the sentences of those that raise HQError.
IMPORTER = """
import importlib, json, sys
from hq.errors import HQError

refused = {}
for module in json.load(sys.stdin):
    try:
        importlib.import_module(module)
    except HQError as error:
        refused[module] = str(error)
json.dump(refused, sys.stdout)
"""

STUDY, GGUF = "{study}/study.toml", "{gguf}"
FP16 = ("--precisions", "fp16")
RUN = str(bare.ROOT / "results" / "smollm2-knowledge")
NEEDING = (  # an extra, and the arguments of a command that needs it
    ("bnb", ("study", "run", STUDY, "--precisions", "fp16,int8")),
    ("bnb", ("study", "run", STUDY, "--precisions", "fp16,nf4")),
    ("datasets", ("study", "run", "smollm2-triviaqa", "--model", "{study}/model", *FP16)),
    ("embedded", ("study", "run", "smollm2-facts", "--model", "{study}/model", *FP16)),
    ("embedded", ("study", "run", STUDY, "--model", GGUF, *FP16)),
    ("embedded", ("sweep", STUDY, "--scenarios", "nonexist", *FP16)),
    ("gptq", ("study", "run", STUDY, "--precisions", "fp16,awq-4")),
    ("gptq", ("study", "run", STUDY, "--precisions", "fp16,gptq-4")),
    ("llama", ("study", "run", STUDY, "--precisions", "fp16,gguf-q8_0")),
    ("llama", ("study", "run", STUDY, "--sampler", "llamacpp", *FP16)),
    ("llama", ("monitor", "Why?", "--gguf", GGUF, "--neurons", f"{RUN}/neurons.json")),
    ("report", ("picture", RUN, "--into", "auroc.svg")),
    ("report", ("report", RUN, "--into", "report.html")),
    ("serve", ("serve", "--gguf", GGUF, "--bundle", "bundle")),
    ("torchao", ("study", "run", STUDY, "--precisions", "fp16,hqq-4")),
    ("torchao", ("study", "run", STUDY, "--precisions", "fp16,torchao-int8")),
)


def commands(group=None, path=()):
    """The arguments that name each command and each group of commands."""
    group = group or typer.main.get_command(app)
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """Runs a program in the bare installation; returns what it printed."""
    folder = tmp_path_factory.mktemp("bare")
    environment = os.environ | {
        "COLUMNS": "400",
        "HQ_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    if "HQ_BARE" in os.environ:
        interpreter = [os.environ["HQ_BARE"]]
        environment.pop("PYTHONPATH", None)
    else:
        interpreter = [sys.executable, "-S"]  # -S: without the packages of this environment
        packages = bare.link(folder / "packages")
        environment["PYTHONPATH"] = os.pathsep.join([str(packages), str(bare.ROOT)])

    def run(program, sent=""):
        ran = subprocess.run(
            [*interpreter, "-c", program],
            input=sent,
            capture_output=True,
            cwd=folder,
            env=environment,
            encoding="utf-8",
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


@pytest.fixture(scope="module")
def outcomes(bare_python, tiny_study, gguf):
    """Exit code, stdout and stderr of every help and of every command above, by its arguments."""
    places = {"study": tiny_study.parent, "gguf": gguf("llama", "f16")}
    helps = [(*command, "--help") for command in commands()]
    called = [*helps, *(arguments for _, arguments in NEEDING)]
    sent = [[argument.format(**places) for argument in arguments] for arguments in called]
    return dict(zip(called, json.loads(bare_python(RUNNER, json.dumps(sent))), strict=True))


def test_no_package_of_an_extra_is_there(bare_python):
    """The other tests show nothing otherwise."""
    project = tomllib.loads((bare.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = {
        canonicalize_name(Requirement(text).name)
        for extra, texts in project["optional-dependencies"].items()
        if extra != "all"
        for text in texts
    }
    listed = bare_python(
        "from importlib import metadata\nfor d in metadata.distributions(): print(d.name)"
    )
    installed = {canonicalize_name(name) for name in listed.split()}
    required = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert {"torch", "transformers", "typer"} <= required <= installed
    assert (optional - required) & installed <= {"fsspec", "hq", "jinja2"}  # torch's


def test_every_module_of_the_library_is_imported_or_names_its_extra(bare_python):
    paths = [p.relative_to(bare.ROOT) for p in sorted((bare.ROOT / "hq").rglob("*.py"))]
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    assert "hq.probe.identify" in modules
    refused = json.loads(bare_python(IMPORTER, json.dumps(modules)))
    # Compiled for the layout of the tensors in the installed llama.cpp.
    compiled = ("callback", "mixture", "native", "shares")
    assert [*refused] == [f"hq.llamacpp.{name}" for name in compiled]
    assert all("pip install 'hq[llama]'" in message for message in refused.values())


@pytest.mark.parametrize("command", [*commands()], ids=" ".join)
def test_every_command_shows_its_help(command, outcomes):
    code, out, err = outcomes[*command, "--help"]
    assert (code, err) == (0, "")
    assert "Usage: " + " ".join(["hq", *command]) in out


@pytest.mark.parametrize(
    ("extra", "arguments"), NEEDING, ids=lambda value: "" if isinstance(value, tuple) else value
)
def test_a_missing_extra_is_named_in_one_sentence(extra, arguments, outcomes):
    code, out, err = outcomes[arguments]
    assert (code, out) == (2, ""), err
    sentence = err.splitlines()[-1]
    assert sentence.startswith("hq: ")
    assert f"pip install 'hq[{extra}]'" in sentence
    assert "Traceback" not in err


def test_every_extra_is_asked_for():
    assert {extra for extra, _ in NEEDING} == set(EXTRAS)
