"""Sums of files: every change is seen and named, and sha256sum reads them."""
import shutil
import subprocess

import numpy as np
import pytest

from glipv2_jax import manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state" / "d").mkdir(parents=True)
    (tmp_path / "about").write_text("{}")
    (tmp_path / "state" / "d" / "0f").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty").write_bytes(b"")
    manifest.write(tmp_path)
    return tmp_path


def test_what_is_as_it_was_has_no_problems_and_without_a_manifest_nobody_knows(folder):
    assert manifest.problems(folder) == []
    (folder / manifest.NAME).unlink()
    assert manifest.problems(folder) is None


@pytest.mark.parametrize("seed", range(30))
def test_every_flipped_bit_is_seen(folder, seed):
    path = folder / "state" / "d" / "0f"
    content = bytearray(path.read_bytes())
    bit = int(np.random.default_rng(seed).integers(8 * len(content)))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    assert manifest.problems(folder) == ["state/d/0f: another sum than in manifest.sha256"]


def test_what_is_missing_cut_or_added_is_seen(folder):
    (folder / "empty").unlink()
    (folder / "about").write_text("{")
    assert manifest.problems(folder) == ["about: another sum than in manifest.sha256", "empty: missing"]


@pytest.mark.parametrize("text", [b"", b"not sums\n", b"\xff\xfe"])
def test_a_damaged_manifest_is_a_problem(folder, text):
    (folder / manifest.NAME).write_bytes(text)
    assert "found no sums" in manifest.problems(folder)[0]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum on this machine")
def test_sha256sum_agrees(folder):
    assert subprocess.run(["sha256sum", "--check", "--strict", manifest.NAME], cwd=folder, capture_output=True, check=False).returncode == 0
