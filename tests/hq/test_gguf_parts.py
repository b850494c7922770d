"""Split GGUF files: all parts are read as one model; incomplete sets are rejected."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.models.dequantized import checkpoint_of
from harness.models.sources import gguf_of
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.suppress.bake.gguf import GGUFModel
from tests.hq import gguf_files as tiny
from tests.hq.gguf_files import overwrite

PARTS = 4


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny llama in four parts; read only."""
    folder = tmp_path_factory.mktemp("parts")
    tiny.write(folder / "tiny.gguf", part_tensors=-(-len(tiny.llama_weights()) // PARTS))
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(published, tmp_path / "parts"))


def part(folder: Path, number: int) -> Path:
    return folder / f"tiny-{number:05}-of-{PARTS:05}.gguf"


def test_the_parts_equal_the_single_file(published, whole):
    split, one = GGUFFile(part(published, 1)), GGUFFile(whole)
    assert len(split.paths) == PARTS
    assert list(split.tensors) == list(one.tensors)
    for name in one.tensors:
        np.testing.assert_array_equal(split.rows(name), one.rows(name))
    np.testing.assert_array_equal(split.norms, one.norms)
    assert split.weight_bytes() == one.weight_bytes()
    assert split.fingerprint == one.fingerprint
    assert split.identity == one.identity


def test_llama_cpp_computes_the_same(published, whole):
    pytest.importorskip("llama_cpp")
    from hq.backends.llamacpp.backend import LlamaBackend
    from tests.tiny import exchanges

    results = []
    for path in (part(published, 1), whole):
        with LlamaBackend(path) as backend:
            rows = dict(backend.logits(exchanges()))
            results.append((np.concatenate([rows[k] for k in sorted(rows)]), backend.audit()))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_capital_letters_in_the_suffix(published, tmp_path, whole):
    for number in range(1, PARTS + 1):
        shutil.copy(part(published, number), tmp_path / part(tmp_path, number).with_suffix(".GGUF"))
    first = gguf_of(tmp_path / part(tmp_path, 1).with_suffix(".GGUF"))
    assert GGUFFile(first).fingerprint == GGUFFile(whole).fingerprint
    shutil.copy(whole, tmp_path / "MODEL.GGUF")
    pytest.importorskip("llama_cpp")
    from hq.backends.llamacpp.backend import LlamaBackend

    for path in (first, gguf_of(str(tmp_path / "MODEL.GGUF"))):
        with LlamaBackend(path) as backend:
            assert backend.identity == GGUFFile(whole).identity


def rejected(path: Path, message: str) -> None:
    with pytest.raises(HQError, match=message) as error:
        GGUFFile(path)
    assert "\n" not in str(error.value)


def test_missing_parts_are_named(folder):
    part(folder, 3).unlink()
    rejected(
        part(folder, 1), r"tiny-00003-of-00004\.gguf is missing: put all parts into one folder"
    )
    part(folder, 4).unlink()
    rejected(part(folder, 1), r"tiny-00003-of-00004\.gguf and 1 more is missing")


def test_another_part_than_the_first_names_the_first(folder):
    rejected(part(folder, 2), r"is part 2 of 4: name the first, .*tiny-00001-of-00004\.gguf")


@pytest.mark.parametrize("name", ["model.gguf", "tiny-00001-of-00005.gguf", "tiny-00002-of-00004"])
def test_a_part_of_another_name_is_rejected(folder, name):
    other = part(folder, 1).rename(folder / f"{name.removesuffix('.gguf')}.gguf")
    rejected(other, r"part 1 of 4 but its name does not end in -00001-of-00004\.gguf")


def test_a_part_of_another_place_or_model_is_rejected(folder, tmp_path):
    third = part(folder, 3).read_bytes()
    part(folder, 3).write_bytes(part(folder, 2).read_bytes())
    rejected(part(folder, 1), r"00003-of-00004\.gguf is damaged \(it is not part 3 of 4\)")
    part(folder, 3).write_bytes(third[: len(third) // 2])
    rejected(part(folder, 1), r"00003-of-00004\.gguf is cut off")
    other = tiny.write(tmp_path / "tiny.gguf", part_tensors=len(tiny.llama_weights()) - 2)
    shutil.copy(other.with_name("tiny-00002-of-00002.gguf"), part(folder, 3))
    rejected(part(folder, 1), r"00003-of-00004\.gguf is damaged \(it is not part 3 of 4\)")


def test_every_part_counts(folder):
    file = GGUFFile(part(folder, 1))
    norms, fingerprint = file.norms, file.fingerprint  # cached beside the first part
    down = GGUFFile(part(folder, 1)).tensors["blk.2.ffn_down.weight"]
    last = part(folder, PARTS)
    assert down.name in _names(last)
    overwrite(last, down.offset, bytes(64))
    changed = GGUFFile(part(folder, 1))
    assert changed.fingerprint != fingerprint
    assert (changed.norms[2] != norms[2]).any()


def _names(path: Path) -> set[str]:
    import gguf

    return {tensor.name for tensor in gguf.GGUFReader(path).tensors}


def test_a_bundle_s_digest_is_of_all_parts(folder):
    from hq.monitor.bundle import model_file

    before = model_file(GGUFFile(part(folder, 1)), "f16")
    assert before.bytes == sum(part(folder, k).stat().st_size for k in range(1, PARTS + 1))
    last = part(folder, PARTS)
    overwrite(last, last.stat().st_size - 64, bytes(64))
    assert model_file(GGUFFile(part(folder, 1)), "f16").sha256 != before.sha256


def test_what_takes_one_file_refuses_parts(published):
    with pytest.raises(HQError, match=r"split into 4 parts.*llama-gguf-split --merge"):
        GGUFModel(part(published, 1))


def test_a_study_can_begin_from_parts(published, whole, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    one, parts = (
        load_file(checkpoint_of(path) / "model.safetensors") for path in (whole, part(published, 1))
    )
    assert one.keys() == parts.keys()
    assert all(torch.equal(one[name], parts[name]) for name in one)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_without_llama_cpp_parts_are_no_study_s_model(published, tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.models.equality.can_verify", lambda: False)
    with pytest.raises(HQError, match=r"split into 4 parts.*llama-gguf-split --merge"):
        checkpoint_of(part(published, 1))
