"""Files and messages do not depend on the locale's encoding."""

import json
import os
import subprocess
import sys
from pathlib import Path

from harness.serve.audit.log import AuditLog

# The C locale, without Python's own fallbacks to UTF-8 (PEP 538 and PEP 540).
_ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
_ROUND_TRIP = """
import locale, sys
from pathlib import Path
from harness.stages.samples import Sample, read_samples, write_samples
from harness.store import jsonl
from harness.store.store import Store, read_record
from harness.tables.files import write_tables

assert locale.getencoding().lower() not in ("utf-8", "utf8"), locale.getencoding()
sample = Sample(id="q", relation="capital", question="São Paulo?", text="São Paulo, 東京",
                answer="sao paulo", hallucinated=True, unit="São Paulo", fold=0,
                prompt_ids=(1,), response_ids=(2,))
write_samples(Path("samples.jsonl"), [sample])
assert read_samples(Path("samples.jsonl")) == [sample]
jsonl.append(Path("log.jsonl"), [sample])
assert jsonl.read_log(Path("log.jsonl"), Sample) == [sample]
folder = Store(Path("store")).build("one-1", {"city": "São Paulo"}, lambda folder: None)
assert read_record(folder)["city"] == "São Paulo"
facts = {"study": "São Paulo", "kind": "detect", "fingerprint": ""}
write_tables(Path("tables"), {}, {}, facts)
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[bytes]:
    root = str(Path(__file__).parents[2])
    environment = os.environ | _ASCII | {"PYTHONPATH": root}
    environment.pop("PYTHONIOENCODING", None)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)


def test_files_are_utf8_in_every_locale(tmp_path):
    (tmp_path / "round_trip.py").write_text(_ROUND_TRIP, encoding="utf-8")
    done = run(tmp_path, sys.executable, "round_trip.py")
    assert done.returncode == 0, done.stderr.decode()
    for name in ("samples.jsonl", "log.jsonl", "tables/tables.md", "tables/results.json"):
        content = (tmp_path / name).read_bytes()
        assert "São Paulo" in content.decode("utf-8")
        assert b"\r" not in content


def test_output_that_the_locale_cannot_encode_is_escaped(tmp_path):
    with AuditLog(tmp_path / "log") as log:
        log.append({"kind": "response", "domain": "São Paulo"})
    start = "import sys; from harness.cli import main; main()"
    shown = run(tmp_path, sys.executable, "-c", start, "audit", "query", "log")
    assert shown.returncode == 0, shown.stderr.decode()
    lines = run(tmp_path, sys.executable, "-c", start, "audit", "query", "log", "--json")
    assert json.loads(lines.stdout)["domain"] == "São Paulo"
