"""One file with the whole model: equal to the model, for any batch, and read without the package."""
import importlib.resources
import json
import runpy
import subprocess
import sys
import zipfile

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image

from glipv2_jax.export import archive as archive_file
from glipv2_jax.export import command, onnx_file

NAMES = ["traffic light", "dog", "zebra crossing"]
CANVAS, TOKENS = (64, 96), 32


@pytest.fixture(scope="module")
def archive(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.glipv2"
    archive_file.write(detector, path, CANVAS, TOKENS)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(2).integers(0, 256, (*CANVAS, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_file_holds_a_program_for_every_platform_and_any_batch(archive):
    with zipfile.ZipFile(archive) as files:
        exported = jax.export.deserialize(bytearray(files.read("forward.jax_export")))
        about = json.loads(files.read("about.json"))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    image = exported.in_avals[-5]
    assert image.shape[1:] == (*CANVAS, 3) and not isinstance(image.shape[0], int)
    assert about["canvas"] == list(CANVAS) and about["classes"] == TOKENS // 2


def test_it_has_no_kernel_of_one_platform(detector):
    assert detector.model.config.kernels == "auto" and archive_file.portable(detector.model).config.kernels == "xla"


def test_its_detections_are_the_detectors(archive, detector, photo):
    """Batch of three, the middle one different: also shows that examples do not mix."""
    _, call, params = archive_file.read(archive)
    image = np.asarray(Image.open(photo))
    encoding = detector.tokenizer.encode(". ".join(NAMES), TOKENS)
    words = np.zeros((TOKENS // 2, TOKENS), bool)
    begin = 0
    for row, name in enumerate(NAMES):
        words[row] = (encoding.offsets[:, 0] >= begin) & (encoding.offsets[:, 1] <= begin + len(name))
        words[row] &= encoding.offsets[:, 1] > encoding.offsets[:, 0]
        begin += len(name) + 2
    found = call(params, np.stack([image, 255 - image, image]), np.array([CANVAS] * 3, np.int32),
                          np.stack([encoding.ids] * 3), np.stack([encoding.mask] * 3), words)
    for row, pixels in enumerate((image, 255 - image, image)):
        expected = detector.detect([pixels], NAMES, threshold=0)[0]
        real = np.asarray(found["mask"][row])
        assert len(expected) == real.sum() > 3
        np.testing.assert_array_equal(np.asarray(found["labels"][row])[real], expected.labels)
        np.testing.assert_allclose(np.asarray(found["scores"][row])[real], expected.scores, rtol=1e-4)
        np.testing.assert_allclose(np.asarray(found["boxes"][row])[real], expected.boxes, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("size", [CANVAS, (57, 83), (333, 500)])
def test_the_runner_needs_no_package_of_ours(archive, detector, size, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)).save(photo)
    source = importlib.resources.files("glipv2_jax.export") / "runner.py"
    code = ("import runpy, sys; sys.modules['glipv2_jax'] = sys.modules['input_pipeline'] = None; "
            f"sys.argv = ['runner', {str(archive)!r}, {str(photo)!r}, 'traffic light. dog. zebra crossing.']; "
            f"runpy.run_path({str(source)!r})")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    printed = [line.split(" [") for line in done.stdout.splitlines()]
    expected = detector.detect([photo], NAMES, threshold=0.5)[0]
    assert [found for found, _ in printed] == [
        f"{phrase} {score:.2f}" for phrase, score in zip(expected.phrases, expected.scores)] != []
    boxes = [list(map(float, box.rstrip("]").split(", "))) for _, box in printed]
    np.testing.assert_allclose(boxes, expected.boxes, atol=0.06)


def test_a_prompt_too_long_for_the_file_is_refused(archive, photo, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["runner", str(archive), str(photo), ". ".join(f"name {i}" for i in range(20))])
    with pytest.raises(SystemExit, match="expected at most 32"):
        runpy.run_path(str(importlib.resources.files("glipv2_jax.export") / "runner.py"))


@pytest.mark.parametrize("flags, message", [
    (["--canvas=64x100"], "64x100, expected multiples of 32"),
    (["--canvas=64"], "found '64', expected HEIGHTxWIDTH"),
    (["--tokens=500"], "found 500, expected 4 to 64"),
    (["--output=m.py"], "the runner beside it takes that name"),
    (["--output=old.glipv2"], "old.py: is there already")])
def test_what_cannot_work_is_refused(detector, monkeypatch, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.py").write_text("of somebody else")
    monkeypatch.setattr("glipv2_jax.predict.Detector.from_pretrained", lambda *args, **kwargs: detector)
    with pytest.raises(SystemExit, match=message):
        command.main(["--output=m.glipv2", *flags])


def test_the_command_writes_compares_and_puts_the_runner_beside(detector, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("glipv2_jax.predict.Detector.from_pretrained", lambda *args, **kwargs: detector)
    command.main([f"--output={tmp_path}/m.glipv2", "--canvas=64x64", "--tokens=64", "--platforms=cpu"])
    said = capsys.readouterr().out
    assert said.count("classes equal, boxes within") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"m.glipv2", "m.py"}


def test_onnx(detector, tmp_path):
    """Boxes and scores of every anchor, from onnxruntime."""
    pytest.importorskip("jax2onnx", reason="the extra onnx")
    pytest.importorskip("onnxruntime", reason="the extra onnx")
    onnx_file.write(detector, tmp_path / "m.onnx", CANVAS, TOKENS)
    inputs = command._example(detector, CANVAS, TOKENS, 1)
    said = onnx_file.compare(detector, tmp_path / "m.onnx", inputs)
    boxes, scores = (float(part.split(" within ")[1].split(",")[0]) for part in said.split(": ")[1].split(", ")[1:])
    assert boxes < 1e-5 and scores < 1e-5 and " 0 scores" not in said
