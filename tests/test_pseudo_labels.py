"""`glipv2 pseudo-label`: every pair once, also after a kill; what is left out and why; files that training reads."""
import base64
import dataclasses
import functools
import itertools
import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from glipv2_jax import data_arguments, prepare
from glipv2_jax.checkpoint import Checkpoints
from glipv2_jax.evaluation.parts import Parts
from glipv2_jax.models.config import model_config
from glipv2_jax.models.glipv2 import GLIPv2, init_params
from glipv2_jax.predict import Detector
from glipv2_jax.pseudo_labels import command, labels
from glipv2_jax.train_state import TrainState
from input_pipeline import image_ops, train_batches
from input_pipeline.registry import make_source, train_options
from input_pipeline.tokenizer import Tokenizer
from tests.conftest import REPOSITORY
from tests.test_models import MASK_HEAD
from tests.test_prepare import assert_equal
from tests.test_train import small_config

THRESHOLD = 0.3
CAPTIONS = ["A red dog sees two geese.", "running very fast", "a <b>bold</b> cat and a dog", "the green ball", "a kite on a tree",
            "two red balls", "a man's hat", "a cat. a cat"]


def write_checkpoint(workdir, **overrides):
    """Fresh weights, moved a little, so that scores differ between words and places."""
    config = small_config()
    config.model.overrides = config.model.overrides.to_dict() | overrides
    config.data.max_boxes = 8
    config.eval.canvases, config.eval.max_size = ((64, 96), (96, 64)), 96
    config.eval.records_per_part = 2
    config.eval.max_detections = 20
    model = model_config(config.model.variant, config.model.overrides)
    params = jax.jit(functools.partial(init_params, GLIPv2(model)))(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype), params)
    params["grounding"]["bias0"] = params["grounding"]["bias0"] * 0
    checkpoints = Checkpoints(workdir)
    checkpoints.save(TrainState(np.int32(1), params, (), None, np.float32(0)), json.loads(config.to_json_best_effort()),
                     dataclasses.asdict(model))
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


def write_pairs(folder, captions=CAPTIONS, sizes=((40, 30), (30, 40))):
    """A file of pairs; images high and wide in turn."""
    rng = np.random.default_rng(0)
    for n in range(len(captions)):
        size = sizes[n % len(sizes)]
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{n}.png")
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps({"image": f"{n}.png", "caption": caption, "image_id": 100 + n}) + "\n"
                            for n, caption in enumerate(captions)))
    return {"kind": "pairs", "jsonl_path": str(path), "image_folder": str(folder)}


def run(spec, checkpoint, output, **options):
    command.run(spec, checkpoint, output, **{"threshold": THRESHOLD} | options)
    return lines(output / labels.LABELS), lines(output / labels.LEFT_OUT)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_pair_is_labelled_or_left_out_with_its_reason(checkpoint, tmp_path, capsys):
    spec = write_pairs(tmp_path)
    (tmp_path / "3.png").unlink()
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:300])            # its header is whole
    with pytest.raises(ValueError, match=r"record 3: .*3\.png: cannot read the image") as found:
        run(spec, checkpoint, tmp_path / "out", shards=2)
    assert found.value.__notes__ == ["That is one more than the 0 of --max_bad."]
    with pytest.raises(ValueError, match=r"5\.png: cannot read the image") as found:
        run(spec, checkpoint, tmp_path / "out", max_bad=1, shards=2)
    done, rest = run(spec, checkpoint, tmp_path / "out", max_bad=2, shards=2)
    assert [line["pair"] for line in done] == [7, 0, 2, 4, 6] and {line["pair"] for line in rest} == {1, 3, 5}
    assert [line["image_id"] for line in done] == [100 + line["pair"] for line in done]
    assert next(line for line in rest if line["pair"] == 1)["reason"] == labels.NO_PHRASE
    assert all("cannot read the image" in line["error"] for line in rest if line["pair"] in (3, 5))
    card = json.loads((tmp_path / "out" / command.CARD).read_text())
    assert card["left_out"] == {labels.NO_PHRASE: 1, labels.NO_IMAGE: 2} and card["labelled"] == 5 and card["pairs"] == 8
    assert card["boxes"] == sum(len(line["grounding"]["regions"]) for line in done)
    assert "5 of 8 pairs" in capsys.readouterr().out and not (tmp_path / "out" / command.WORK).exists()
    page = (tmp_path / "out" / command.SHEET).read_text()
    assert "3.png: cannot read" in page and "<b>bold" not in page and page.count("<figure>") == 3
    run(spec, checkpoint, tmp_path / "out", max_bad=2, shards=2)
    assert "labelled before, nothing to do" in capsys.readouterr().out


def test_boxes_are_those_of_the_detector(checkpoint, tmp_path):
    done, _ = run(write_pairs(tmp_path), checkpoint, tmp_path / "out", shards=0)
    assert not (tmp_path / "out" / command.RECORDS).exists()
    detector, seen = Detector.from_pretrained(checkpoint), 0
    for line in done:
        found = detector.ground(tmp_path / line["filename"], line["grounding"]["caption"], threshold=THRESHOLD)
        regions = line["grounding"]["regions"]
        np.testing.assert_allclose([region["score"] for region in regions], found.scores, atol=1e-3)
        boxes = found.to_odvg("")["grounding"]["regions"]
        key = functools.partial(sorted, key=lambda region: (region["tokens_positive"], region["bbox"]))
        for one, other in zip(key(regions), key(boxes), strict=True):
            np.testing.assert_allclose(one["bbox"], other["bbox"], atol=0.02)
            assert one["phrase"] == other["phrase"] and one["tokens_positive"] == other["tokens_positive"]
        seen += len(regions)
    assert seen > 10


def test_a_mask_head_gives_every_box_its_mask(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "weights", mask_head=MASK_HEAD)
    spec = write_pairs(tmp_path, (CAPTIONS[0], CAPTIONS[2]), ((96, 64),))            # their size on the canvas
    out = tmp_path / "out"
    done, _ = run(spec, checkpoint, out, shards=2)
    card = json.loads((out / command.CARD).read_text())
    assert card["masks"] == card["boxes"] == sum(len(line["grounding"]["regions"]) for line in done) > 5
    odvg = {"kind": "odvg", "jsonl_path": str(out / labels.LABELS), "image_folder": str(tmp_path), "with_masks": True}
    read, stored = make_source(odvg), make_source({"kind": "records", "folder": str(out / command.RECORDS)})
    assert stored.card["masks"] == card["masks"]
    detector, pixels, other = Detector.from_pretrained(checkpoint), 0, 0
    for index, line in enumerate(done):
        record, regions = read[index], line["grounding"]["regions"]
        assert_equal(stored[index], record)
        assert record["masks"].shape == (len(regions), line["height"], line["width"])
        found = detector.ground(tmp_path / line["filename"], line["grounding"]["caption"], threshold=THRESHOLD)
        for mask, region in zip(record["masks"], regions):
            (same,) = (k for k in range(len(found)) if [list(span) for span in found.spans[found.labels[k]]] == region["tokens_positive"]
                       and np.abs(found.boxes[k] + [0, 0, 1, 1] - region["bbox"]).max() < 0.05)
            pixels, other = pixels + mask.sum(), other + (found.masks[same] != mask).sum()
    assert pixels > 100 and other < 0.02 * pixels
    # As those of COCO files they are, in a batch, what lies inside each box.
    config = small_config()
    config.data.mask_size, config.data.max_boxes, config.data.augment = 8, 40, "resize(64, 96)"
    config.data.canvases = ((96, 64),)
    batch = next(train_batches(**train_options(config, [odvg], [read], Tokenizer()), start_step=0, process_index=0, process_count=1))
    for row, image_id in enumerate(batch["example_id"].tolist()):
        record = next(record for record in map(read.__getitem__, range(len(read))) if record["image_id"] == image_id)
        masks = batch["masks"][row, batch["box_mask"][row]]
        np.testing.assert_array_equal(masks, image_ops.crop_masks(record["masks"], record["boxes"], 8))
    run(spec, checkpoint, tmp_path / "boxes", settings={"masks": False}, shards=0)
    for line in lines(tmp_path / "boxes" / labels.LABELS):
        assert not any("segmentation" in region for region in line["grounding"]["regions"])


def test_training_reads_the_lines_and_the_records(checkpoint, tmp_path):
    done, _ = run(write_pairs(tmp_path), checkpoint, tmp_path / "out", shards=3)
    out = tmp_path / "out"
    read = make_source({"kind": "odvg", "jsonl_path": str(out / labels.LABELS), "image_folder": str(tmp_path)})
    stored = make_source({"kind": "records", "folder": str(out / command.RECORDS)})
    assert len(read) == len(stored) == len(done) and read.replace_empty and stored.replace_empty
    for index, line in enumerate(done):
        assert "masks" not in stored[index] and not any("segmentation" in region for region in line["grounding"]["regions"])
        assert_equal(stored[index], read[index])
        assert stored.image_bytes(index) == (tmp_path / line["filename"]).read_bytes()
        assert stored.image_size(index) == (line["height"], line["width"])
        for region in line["grounding"]["regions"]:
            (begin, end), = region["tokens_positive"]
            assert line["grounding"]["caption"][begin:end] == region["phrase"] and region["score"] >= THRESHOLD
            assert 0 <= region["bbox"][0] < region["bbox"][2] <= line["width"]
    best = max(region["score"] for region in done[0]["grounding"]["regions"])
    strict = make_source({"kind": "odvg", "jsonl_path": str(out / labels.LABELS), "image_folder": str(tmp_path), "min_score": best})
    assert len(strict[0]["boxes"]) == 1


def test_a_run_that_has_labelled_nothing_leaves_the_folder_to_others(checkpoint, tmp_path, monkeypatch):
    """And none of its work, such as the sizes of other images."""
    def killed(*_):
        raise KeyboardInterrupt
    spec = write_pairs(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Parts, "add", killed)
        run(spec, checkpoint, tmp_path / "out")
    (tmp_path / "small").mkdir()
    few = write_pairs(tmp_path / "small", captions=CAPTIONS[:3], sizes=((30, 40), (40, 30)))
    assert run(few, checkpoint, tmp_path / "out")[0] == run(few, checkpoint, tmp_path / "fresh")[0]


def test_a_killed_run_goes_on_and_no_pair_is_lost_or_doubled(checkpoint, tmp_path, monkeypatch):
    spec = write_pairs(tmp_path)
    run(spec, checkpoint, tmp_path / "whole", shards=2)
    add, added = Parts.add, []

    def killed(self, found):
        if len(added) == 1:
            raise KeyboardInterrupt
        added.append([one.record for one in found])
        add(self, found)
    monkeypatch.setattr(Parts, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        run(spec, checkpoint, tmp_path / "out", shards=2)
    with pytest.raises(ValueError, match=r"unfinished labels of another run\. threshold: 0\.3, expected 0\.4"):
        run(spec, checkpoint, tmp_path / "out", shards=2, threshold=0.4)
    rest = []
    monkeypatch.setattr(Parts, "add", lambda self, found: (rest.append([one.record for one in found]), add(self, found)))

    def killed_again(*_):
        raise KeyboardInterrupt
    written = prepare.command._finish
    monkeypatch.setattr(prepare.command, "_finish", killed_again)
    with pytest.raises(KeyboardInterrupt):
        run(spec, checkpoint, tmp_path / "out", shards=2)
    assert sorted(itertools.chain.from_iterable(added + rest)) == list(range(8))                # every pair once
    monkeypatch.setattr(prepare.command, "_finish", written)
    monkeypatch.setattr(Parts, "add", killed_again)                                          # nothing is left to label
    done, left_out = run(spec, checkpoint, tmp_path / "out", shards=2)
    assert sorted(line["pair"] for line in (*done, *left_out)) == list(range(8))
    for name in (labels.LABELS, labels.LEFT_OUT):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for path in (tmp_path / "whole" / command.RECORDS).glob("glipv2-records*"):
        assert (tmp_path / "out" / command.RECORDS / path.name).read_bytes() == path.read_bytes()


def test_pairs_without_boxes_stay_where_they_are_asked_for(checkpoint, tmp_path):
    spec = write_pairs(tmp_path)
    done, rest = run(spec, checkpoint, tmp_path / "all", min_boxes=0)
    assert len(done) == 8 and not rest
    assert next(line for line in done if line["pair"] == 1)["grounding"]["regions"] == []
    with pytest.raises(ValueError, match="found no pair with 2 boxes of a score of at least 1.0"):
        run(spec, checkpoint, tmp_path / "none", threshold=1.0, min_boxes=2)
    rest = lines(tmp_path / "none" / labels.LEFT_OUT)
    assert sorted(line["pair"] for line in rest) == list(range(8))
    assert [line["pair"] for line in rest if "fewer boxes than 2" not in line["reason"]] == [1]


def test_captions_of_other_readers(checkpoint, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_pairs(folder, CAPTIONS[:4])
    rows = [{"caption": CAPTIONS[0]}, [{"caption": CAPTIONS[2]}], {"captions": [CAPTIONS[3], CAPTIONS[4]]}]
    (folder / "label.tsv").write_text("".join(f"{n}\t{json.dumps(row)}\n" for n, row in enumerate(rows)))
    (folder / "img.tsv").write_text("".join(
        f"{n}\t{base64.b64encode((folder / f'{n}.png').read_bytes()).decode()}\n" for n in range(3)))
    (folder / "cap.yaml").write_text("img: img.tsv\nlabel: label.tsv\n")
    tsv = data_arguments.spec_of(folder / "cap.yaml")
    source = make_source(tsv)
    assert [source.caption(n) for n in range(3)] == [CAPTIONS[0], CAPTIONS[2], f"{CAPTIONS[3]} {CAPTIONS[4]}"]
    assert len(source[1]["boxes"]) == 0 and source[1]["spans"] == []
    scenes = {"kind": "scenes", "task": "caption", "num_examples": 3, "canvas": [64, 64]}
    for name, spec in (("tsv", tsv), ("scenes", scenes)):
        source = make_source(spec)
        done, rest = run(spec, checkpoint, tmp_path / name)
        assert sorted(line["pair"] for line in (*done, *rest)) == list(range(len(source)))
        stored = make_source({"kind": "records", "folder": str(tmp_path / name / command.RECORDS)})
        for index, line in enumerate(done):
            np.testing.assert_array_equal(stored[index]["image"](), image_ops.pixels_of(source[line["pair"]]))
            assert stored[index]["caption"] == source[line["pair"]]["caption"]
    with pytest.raises(ValueError, match="class names, expected one of captions"):
        run(scenes | {"task": "detection"}, checkpoint, tmp_path / "classes")


def test_lines_of_pairs_are_checked(tmp_path):
    spec = write_pairs(tmp_path)
    assert data_arguments.spec_of(spec["jsonl_path"], tmp_path) == spec
    source = make_source(spec)
    assert source.image_size(0) == (40, 30) and source[7]["caption"] == source.caption(7) and source[7]["image_id"] == 107
    bad = [{"image": "0.png", "caption": " "}, {"image": 3, "caption": "a"}, {"caption": "a"},
           {"image": "0.png", "caption": "a", "height": 3, "width": 4}, {"image": "0.png", "caption": "a", "height": "3"}]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bad) + "{\n")
    source = make_source(spec | {"jsonl_path": str(tmp_path / "bad.jsonl")})
    for index, message in enumerate(("found an empty caption", "'image': found 3, expected str", "'image': found nothing",
                                     "expected 4x3 as it states", "'height': found '3'", "not JSON")):
        with pytest.raises(ValueError, match=message):
            image_ops.pixels_of(source[index])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="found no line"):
        make_source(spec | {"jsonl_path": str(tmp_path / "empty.jsonl")})


@pytest.mark.parametrize("arguments, message", [
    (["--pairs={pairs}"], "found no folder of its images"),
    ([], "expected one of --pairs and --format"),
    (["--pairs={pairs}", "--images={tmp}", "--threshold=2"], "found 2.0, expected 0 to 1"),
    (["--format=pear"], "found 'pear', expected one of"),
    (["--pairs={pairs}", "--images={tmp}", "--config.eval.batch=3"], "--batch: no field of config.eval"),
    (["--pairs={pairs}", "--images={tmp}", "--min_score=3"], "unexpected keyword argument 'min_score'"),
    (["--pairs={pairs}", "--images={tmp}", "--checkpoint={tmp}"], "checkpoint")])
def test_bad_arguments_are_named(checkpoint, tmp_path, capsys, arguments, message):
    pairs = write_pairs(tmp_path)["jsonl_path"]
    arguments = [argument.format(tmp=tmp_path, pairs=pairs) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        command.main([f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}", *arguments])
    assert message in f"{ended.value.code} {capsys.readouterr().err}"


@pytest.mark.slow
def test_two_processes_label_what_one_does(checkpoint, tmp_path):
    spec = write_pairs(tmp_path)
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:300])
    run(spec, checkpoint, tmp_path / "one", shards=3, max_bad=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [subprocess.Popen(
        [sys.executable, "-m", "glipv2_jax.cli", "pseudo-label", f"--checkpoint={checkpoint}", f"--pairs={spec['jsonl_path']}",
         f"--images={tmp_path}", f"--output={tmp_path / 'two'}", f"--threshold={THRESHOLD}", "--shards=3", "--max_bad=1",
         f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for i in range(2)]
    told = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    for name in (labels.LABELS, labels.LEFT_OUT):
        one, two = (lines(tmp_path / folder / name) for folder in ("one", "two"))
        assert [line["pair"] for line in one] == [line["pair"] for line in two]
        for a, b in zip(one, two):
            for ours, theirs in zip(*(line.get("grounding", {}).get("regions", []) for line in (a, b)), strict=True):
                assert ours["phrase"] == theirs["phrase"]
                np.testing.assert_allclose(ours["bbox"], theirs["bbox"], atol=0.05)
    stored = make_source({"kind": "records", "folder": str(tmp_path / "two" / command.RECORDS)})
    assert len(stored) == len(lines(tmp_path / "two" / labels.LABELS))
