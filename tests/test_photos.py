"""`glipv2 detect`, `ground`, `answer` and `describe` on files, folders and patterns: what they write, and what they never touch."""
import json
import sys

import numpy as np
import pytest
from PIL import Image

from glipv2_jax import photos
from glipv2_jax.detections import Answer, Detections


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
    assert {path.name for path in (tmp_path / "found" / "detect").iterdir()} == {"a.jpg", "a.json", "b.jpg", "b.json"}
    line = json.loads((tmp_path / "found" / "detect" / "a.json").read_text())
    assert line["filename"] == "a.jpg" and {i["category"] for i in line["detection"]["instances"]} <= {"traffic light", "dog"}
    assert "2 pictures in found/detect; the first after" in capsys.readouterr().out
    command("pictures", "above and below", find=photos.ground)
    assert "a.jpg: no boxes, as no thing is named in 'above and below'" in capsys.readouterr().out
    assert len(list((tmp_path / "found").iterdir())) == 2                  # a folder for each task


class Talking:
    """In the place of a Detector: says the same about every picture."""

    def answer(self, image, question, top, threshold):
        return Answer(question, ("yes", "no")[:top], np.array([0.75, 0.25])[:top], self.describe(image, threshold, caption=question))

    def describe(self, image, threshold, caption="a cat", **options):
        self.options = options
        return Detections(np.array([[1, 1, 20, 30]], np.float32), np.array([0.9]), np.array([0]), (caption[:5],),
                          image, caption, (((0, 5),),))


def test_answers_and_captions_are_said_and_kept(command, monkeypatch, tmp_path, capsys):
    talking = Talking()
    monkeypatch.setattr("glipv2_jax.predict.Detector.from_pretrained", lambda *args, **options: talking)
    command("pictures", "is there a cat?", "--top=1", find=photos.answer)
    record = json.loads((tmp_path / "found" / "answer" / "a.json").read_text())
    assert record["answers"] == [{"answer": "yes", "probability": 0.75}] and record["grounding"]["regions"][0]["score"] == 0.9
    assert "a.jpg: yes 0.75; is th 0.90" in capsys.readouterr().out
    command("pictures/a.jpg", "--beams=2", "--max_words=7", "--output=said", find=photos.describe)
    assert talking.options == {"beams": 2, "max_words": 7, "length_penalty": 1.0}
    assert json.loads((tmp_path / "said" / "a.json").read_text())["grounding"]["caption"] == "a cat"
    assert "a.jpg: a cat; a cat 0.90" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="expected photographs and behind them a question"):
        command("pictures", " ", find=photos.answer)


@pytest.mark.parametrize("find, arguments, message", [
    (photos.answer, ("pictures", "is it?"), "glipv2: this model answers no questions"),
    (photos.describe, ("pictures", "--max_words=500"), "glipv2: max_words: found 500, expected 1 or more, at most"),
    (photos.ground, ("pictures", "a cat", "--phrases", "a dog"), "phrases: 'a dog' does not occur in the caption")])
def test_what_is_wrong_with_words_or_model_is_said_once(command, find, arguments, message):
    with pytest.raises(SystemExit) as told:
        command(*arguments, find=find)
    assert str(told.value).count(message) == 1 and "not read" not in str(told.value)


@pytest.mark.parametrize("find, flag", [
    (photos.detect, "--threshold=2"), (photos.ground, "--threshold=-1"), (photos.answer, "--threshold=nan"),
    (photos.describe, "--beams=0"), (photos.answer, "--top=0"), (photos.detect, "--orders=x")])
def test_numbers_out_of_range_are_named_with_their_flag(command, capsys, find, flag):
    with pytest.raises(SystemExit):
        command("pictures", "a cat.", flag, find=find)
    name, value = flag.split("=")
    assert f"argument {name}: found {value!r}, expected a number from" in capsys.readouterr().err


def test_photographs_are_not_written_over(command, tmp_path):
    before = (tmp_path / "pictures" / "a.jpg").read_bytes()
    with pytest.raises(SystemExit, match="--output=pictures: found a folder of the photographs"):
        command("pictures", "a dog.", "--output=pictures")
    assert (tmp_path / "pictures" / "a.jpg").read_bytes() == before
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"a.jpg", "b.png"}
    links = tmp_path / "links"
    links.mkdir()
    (links / "a.jpg").symlink_to(tmp_path / "pictures" / "a.jpg")
    for arguments in (("links", "a dog.", "--output=links"), ("pictures/a.jpg", "a dog.", "--output=links")):
        with pytest.raises(SystemExit, match="--output=links: found a folder of the photographs"):
            command(*arguments)
    assert (tmp_path / "pictures" / "a.jpg").read_bytes() == before


def test_a_broken_photograph_is_named_after_the_others_are_done(command, tmp_path):
    (tmp_path / "pictures" / "broken.jpg").write_text("no picture")
    with pytest.raises(SystemExit, match=r"not read:\n.*broken.jpg: cannot read the image"):
        command("pictures/*", "a dog on grass", find=photos.ground)
    assert {path.name for path in (tmp_path / "found" / "ground").glob("*.jpg")} == {"a.jpg", "b.jpg"}


@pytest.mark.parametrize("arguments, message", [
    (["nowhere.jpg", "a dog."], "nowhere.jpg: found no photograph"),
    (["pictures"], "found 'pictures' as the last of 1 arguments, expected photographs and behind them class names"),
    (["pictures/a.jpg", "pictures/b.png"], "found 'pictures/b.png' as the last of 2 arguments"),
    ([], "found no argument, expected"),
    (["pictures", " . "], "no class names in")])
def test_what_cannot_work_is_refused(command, arguments, message):
    with pytest.raises(SystemExit, match=message):
        command(*arguments)


@pytest.mark.parametrize("arguments, message", [
    ([], "found no photograph; expected some, or --example$"), (["nowhere.jpg"], "nowhere.jpg: found no photograph; expected .* or a pattern$")])
def test_a_description_needs_photographs_and_no_text(command, arguments, message):
    with pytest.raises(SystemExit, match=message):
        command(*arguments, find=photos.describe)
