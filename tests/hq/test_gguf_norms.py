"""Norms of a GGUF file, kept beside it, and never believed where the file may have changed."""

import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from hq.gguf.file import GGUFFile
from hq.gguf.norms import dequantized_column_norms
from tests.hq import gguf_files as tiny
from tests.hq.gguf_files import overwrite

TYPE = gguf.GGMLQuantizationType


# Norms that are kept


def beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.hq.safetensors")


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Grows by one a layer whose norms are computed."""
    calls: list[int] = []

    def counted(*arguments):
        calls.append(1)
        return dequantized_column_norms(*arguments)

    monkeypatch.setattr("hq.gguf.file.dequantized_column_norms", counted)
    return calls


def test_norms_are_kept_beside_the_model(copied, computed):
    first = GGUFFile(copied).norms
    assert sorted(p.name for p in copied.parent.iterdir()) == sorted(
        [copied.name, beside(copied).name]
    )
    np.testing.assert_array_equal(GGUFFile(copied).norms, first)
    assert len(computed) == tiny.LAYERS


def test_a_changed_file_is_read_anew(copied, computed):
    first = GGUFFile(copied).norms
    overwrite(copied, copied.stat().st_size - 1, b"\x01")
    assert not np.array_equal(GGUFFile(copied).norms, first)
    tiny.write(copied, "Q8_0")
    assert not np.array_equal(GGUFFile(copied).norms, first)
    assert len(computed) == 3 * tiny.LAYERS


def test_norms_of_another_file_are_not_read(copied, tmp_path, computed):
    other = tiny.write(tmp_path / "other.gguf", seed=1)
    shutil.copy(beside_of(other), beside(copied))
    expected = GGUFFile(copied).norms
    beside(copied).unlink()
    np.testing.assert_array_equal(GGUFFile(copied).norms, expected)


def beside_of(path: Path) -> Path:
    _ = GGUFFile(path).norms
    return beside(path)


@pytest.mark.parametrize("place", [0, 7, 8, 20, 60, 130, 400, -1])
def test_damaged_norms_are_computed_again(place, copied, computed):
    first = GGUFFile(copied).norms
    kept = bytearray(beside(copied).read_bytes())
    kept[place] ^= 0x10
    beside(copied).write_bytes(kept)
    np.testing.assert_array_equal(GGUFFile(copied).norms, first)
    assert len(computed) == 2 * tiny.LAYERS
    np.testing.assert_array_equal(GGUFFile(copied).norms, first)
    assert len(computed) == 2 * tiny.LAYERS  # and were kept again


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x02\0\0\0\0\0\0\0{}", struct.pack("<Q", 1 << 60)]
)
def test_norms_that_are_no_file_of_norms_are_computed_again(content, copied):
    first = GGUFFile(copied).norms
    beside(copied).write_bytes(content)
    np.testing.assert_array_equal(GGUFFile(copied).norms, first)


def test_a_folder_in_the_place_of_the_norms_only_costs_time(copied, computed):
    beside(copied).mkdir()
    for _ in range(2):
        assert GGUFFile(copied).norms.shape == (tiny.LAYERS, tiny.D_FF)
    assert len(computed) == 2 * tiny.LAYERS
    assert len(list(copied.parent.iterdir())) == 2


def test_a_folder_that_cannot_be_written_only_costs_time(copied, monkeypatch, computed):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hq.gguf.norms.write_whole", refuse)
    for _ in range(2):
        assert GGUFFile(copied).norms.shape == (tiny.LAYERS, tiny.D_FF)
    assert len(computed) == 2 * tiny.LAYERS
