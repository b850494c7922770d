"""The cache of a GGUF file's norms, which is not used if the file may have changed."""

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


# The cache


def cache_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.hq.safetensors")


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Grows by one entry per layer whose norms are computed."""
    calls: list[int] = []

    def counted(*arguments):
        calls.append(1)
        return dequantized_column_norms(*arguments)

    monkeypatch.setattr("hq.gguf.file.dequantized_column_norms", counted)
    return calls


def test_norms_are_cached_next_to_the_model(copied, computed):
    first = GGUFFile(copied).norms
    assert sorted(p.name for p in copied.parent.iterdir()) == sorted(
        [copied.name, cache_of(copied).name]
    )
    np.testing.assert_array_equal(GGUFFile(copied).norms, first)
    assert len(computed) == tiny.LAYERS


def test_norms_of_a_changed_file_are_recomputed(copied, computed):
    first = GGUFFile(copied).norms
    overwrite(copied, copied.stat().st_size - 1, b"\x01")
    assert not np.array_equal(GGUFFile(copied).norms, first)
    tiny.write(copied, "Q8_0")
    assert not np.array_equal(GGUFFile(copied).norms, first)
    assert len(computed) == 3 * tiny.LAYERS


def test_norms_of_another_file_are_not_read(copied, tmp_path, computed):
    other = tiny.write(tmp_path / "other.gguf", seed=1)
    shutil.copy(cache_written_for(other), cache_of(copied))
    expected = GGUFFile(copied).norms
    cache_of(copied).unlink()
    np.testing.assert_array_equal(GGUFFile(copied).norms, expected)


def cache_written_for(path: Path) -> Path:
    _ = GGUFFile(path).norms
    return cache_of(path)


@pytest.mark.parametrize("position", [0, 7, 8, 20, 60, 130, 400, -1])
def test_damaged_norms_are_recomputed(position, copied, computed):
    first = GGUFFile(copied).norms
    content = bytearray(cache_of(copied).read_bytes())
    content[position] ^= 0x10
    cache_of(copied).write_bytes(content)
    np.testing.assert_array_equal(GGUFFile(copied).norms, first)
    assert len(computed) == 2 * tiny.LAYERS
    np.testing.assert_array_equal(GGUFFile(copied).norms, first)
    assert len(computed) == 2 * tiny.LAYERS  # and were cached again


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x02\0\0\0\0\0\0\0{}", struct.pack("<Q", 1 << 60)]
)
def test_a_cache_of_another_format_is_recomputed(content, copied):
    first = GGUFFile(copied).norms
    cache_of(copied).write_bytes(content)
    np.testing.assert_array_equal(GGUFFile(copied).norms, first)


def test_a_folder_with_the_name_of_the_cache_costs_time_only(copied, computed):
    cache_of(copied).mkdir()
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
