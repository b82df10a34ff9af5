"""What the README tells a newcomer to type, typed."""
import json
import re
import shlex
import sys

import numpy as np
import pytest
from PIL import Image

from glipv2_jax import cli
from glipv2_jax.convert.torch_file import write_torch
from tests.conftest import REPOSITORY
from tests.test_convert import TINY, WORDS, tiny_manifest, with_prefix

README = (REPOSITORY / "README.md").read_text()


def code(section, language):
    """The code blocks of a section."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder with the pictures that the README names."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "scene.png").write_bytes((REPOSITORY / "docs" / "scene.png").read_bytes())
    (tmp_path / "photos").mkdir()
    for path in ("photos/one.jpg", "photo.jpg"):
        Image.fromarray(np.full((60, 80, 3), 99, np.uint8)).save(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(monkeypatch, line, *more):
    """Runs one line of a shell as the console script would."""
    words = shlex.split(line, comments=True)
    assert words[0] == "glipv2"
    monkeypatch.setattr(sys, "argv", [*words, *more])
    cli.main()


def test_three_lines_of_python(elsewhere):
    (block,) = code("Three lines of Python", "python")
    assert len(block.splitlines()) == 3
    names = {}
    exec(block, names)
    found = names["found"]
    assert {"green circle", "red drop"} <= set(found.phrases) and "purple star" not in found.phrases
    with Image.open("found.jpg") as drawn:
        assert min(drawn.size) > 100


def test_the_example_needs_no_file(elsewhere, monkeypatch, capsys):
    (block,) = code("Three lines of Python", "bash")
    (line,) = [line for line in block.splitlines() if "--example" in line]
    typed(monkeypatch, line)
    assert "green circle" in capsys.readouterr().out and (elsewhere / "found" / "detect" / "example.jpg").exists()


def test_released_weights(elsewhere, monkeypatch, capsys, reference_weights):
    """The two lines as they are, with a small file in the layout of the released one."""
    (block,) = code("Use the released weights", "bash")
    convert, detect = block.splitlines()
    state = {key: value for key, shape in tiny_manifest("glip_t").items()
             if (value := reference_weights.make(key, shape, 3)) is not None}
    write_torch("glip_tiny_model_o365_goldg.pth", {"model": with_prefix(state)})
    (elsewhere / "words.txt").write_text("\n".join(WORDS) + "\n")
    (elsewhere / "tiny.json").write_text(json.dumps(TINY))
    typed(monkeypatch, convert, "--overrides=tiny.json", "--vocabulary=words.txt")
    assert f"weights/glip_t: {len(state)} weights fill" in capsys.readouterr().out
    typed(monkeypatch, detect)
    assert (elsewhere / "found" / "detect" / "one.jpg").exists() and "1 picture in found/detect" in capsys.readouterr().out
