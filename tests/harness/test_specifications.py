"""`hq run -e specifications` on the tiny study."""

import shutil

import pytest

SECTION = (
    "--set",
    "specifications.sizes=[3,8]",
    "--set",
    "specifications.seeds=1",
    "--set",
    "specifications.halves=1",
    "--set",
    "specifications.splits=4",
    "--set",
    "specifications.frequency_splits=2",
)


@pytest.fixture
def stages(finished, tmp_path):
    shutil.copytree(finished / "cache", tmp_path / "cache")


@pytest.mark.usefixtures("stages")
def test_specifications(hq, tiny_study, tmp_path, finished):
    ran = hq("run", tiny_study, "-e", "specifications", *SECTION, "--quiet")
    assert ran.code == 0, ran.err
    print(ran.out)
    run = tmp_path / "runs" / "tiny-specifications"
    shutil.copytree(run, "/tmp/work/ch_tiny/run", dirs_exist_ok=True)
