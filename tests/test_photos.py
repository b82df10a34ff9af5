"""`glipv2 detect` and `glipv2 ground` on files, folders and patterns: what they write, and what they never touch."""
import json
import sys

import numpy as np
import pytest
from PIL import Image

from glipv2_jax import photos


@pytest.fixture
def command(detector, monkeypatch, tmp_path):
    """Function of arguments: runs `glipv2 detect` in a folder of its own, with two photographs in pictures/."""
    monkeypatch.setattr("glipv2_jax.predict.Detector.from_pretrained", lambda *args, **options: detector)
    monkeypatch.setattr("glipv2_jax.main.set_up_compilation_cache", lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for n, name in enumerate(("a.jpg", "b.png")):
        pixels = np.random.default_rng(n).integers(0, 256, (64, 96, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / name)

    def run(*arguments, find=photos.detect):
        monkeypatch.setattr(sys, "argv", ["glipv2", *arguments])
        find()
    return run


def test_pictures_and_records_of_a_folder(command, tmp_path, capsys):
    command("pictures", "traffic light. dog.", "--threshold=0.3")
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"a.jpg", "a.json", "b.jpg", "b.json"}
    line = json.loads((tmp_path / "found" / "a.json").read_text())
    assert {i["category"] for i in line["detection"]["instances"]} <= {"traffic light", "dog"}
    assert "2 pictures in found; the first after" in capsys.readouterr().out


def test_photographs_are_not_written_over(command, tmp_path):
    before = (tmp_path / "pictures" / "a.jpg").read_bytes()
    with pytest.raises(SystemExit, match="a.jpg: the result would replace the photograph"):
        command("pictures", "a dog.", "--output=pictures")
    assert (tmp_path / "pictures" / "a.jpg").read_bytes() == before
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"a.jpg", "b.png"}


def test_a_broken_photograph_is_named_after_the_others_are_done(command, tmp_path):
    (tmp_path / "pictures" / "broken.jpg").write_text("no picture")
    with pytest.raises(SystemExit, match=r"not read:\n.*broken.jpg: cannot read the image"):
        command("pictures/*", "a dog on grass", find=photos.ground)
    assert {path.name for path in (tmp_path / "found").glob("*.jpg")} == {"a.jpg", "b.jpg"}


@pytest.mark.parametrize("arguments, message", [
    (["nowhere.jpg", "a dog."], "nowhere.jpg: found no photograph"),
    (["pictures"], "found no photograph; expected photographs and then the text"),
    (["pictures", " . "], "no class names in")])
def test_what_cannot_work_is_refused(command, arguments, message):
    with pytest.raises(SystemExit, match=message):
        command(*arguments)
