"""ODVG files and the line index below them: what is written comes back, and what is wrong is named."""
import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline import odvg
from input_pipeline.line_file import LineFile
from input_pipeline.masks import encode_mask
from input_pipeline.registry import make_source
from input_pipeline.scenes import Scenes
from input_pipeline.schema import NO_CLASS


@pytest.fixture
def file(tmp_path):
    """Function of objects: the path of a JSONL file beside a 40 x 30 picture."""
    Image.new("RGB", (40, 30), "green").save(tmp_path / "a.png")

    def write(*entries):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(e | {"filename": "a.png", "width": 40, "height": 30}) + "\n"
                                for e in entries))
        return path
    return write


def grounding(*regions, caption="A cat sees a cat."):
    return {"grounding": {"caption": caption, "regions": list(regions)}}


def detection(*instances):
    return {"detection": {"instances": list(instances)}}


def read(path, **options):
    return make_source({"kind": "odvg", "jsonl_path": path.name, "image_folder": "", **options}, str(path.parent))


def test_grounding(file):
    source = read(file(
        grounding({"bbox": [1, 2, 11, 12], "phrase": "a cat", "tokens_positive": [[0, 5], [11, 16]]},
                  {"bbox": [[0, 0, 40, 30], [5, 5, 6, 6]], "phrase": "cat"}),
        grounding()))
    assert len(source) == 2 and source.class_names == () and source.image_size(0) == (30, 40)
    record = source[0]
    np.testing.assert_array_equal(record["boxes"], [[1, 2, 10, 11], [0, 0, 39, 29], [5, 5, 5, 5]])
    assert record["spans"] == [[(0, 5), (11, 16)], [(2, 5)], [(2, 5)]]
    assert record["classes"].tolist() == [NO_CLASS] * 3
    assert record["image"]().shape == (30, 40, 3) and record["caption"] == source.caption(0) == "A cat sees a cat."
    assert source[1]["boxes"].shape == (0, 4) and source[1]["image_id"] == 1


def test_detection_with_and_without_a_label_map(file, tmp_path):
    path = file(detection({"bbox": [0, 0, 4, 4], "label": 7, "category": "dog"}),
                detection({"bbox": [0, 0, 4, 5], "label": 2, "category": "cat", "score": 0.2}))
    source = read(path)
    assert source.class_names == ("cat", "dog") and source.category_ids == (2, 7)
    assert source[0]["classes"].tolist() == [1] and source[1]["boxes"].tolist() == [[0, 0, 3, 4]]
    assert len(read(path, min_score=0.3)[1]["boxes"]) == 0 and len(read(path, min_score=0.3)[0]["boxes"]) == 1
    (tmp_path / "map.json").write_text('{"2": "tabby", "7": "hound", "9": "bird"}')
    assert read(path, label_map="map.json").class_names == ("tabby", "hound", "bird")


def shapes(count):
    """bool [count, 30, 40], no two alike."""
    return np.random.default_rng(0).random((count, 30, 40)) > 0.5


def test_masks_come_as_run_lengths_polygons_and_boxes(file):
    first, second = shapes(2)
    path = file(
        grounding({"bbox": [1, 2, 11, 12], "phrase": "a cat", "score": 0.9, "segmentation": encode_mask(first)},
                  {"bbox": [[0, 0, 40, 30], [5, 5, 7, 8]], "phrase": "cat", "segmentation": [encode_mask(second), None]},
                  {"bbox": [[0, 0, 4, 3], [5, 5, 7, 8]], "phrase": "cat"},
                  {"bbox": [3, 3, 9, 9], "phrase": "cat", "score": 0.1, "segmentation": [[3, 3, 9, 3, 9, 9, 3, 9]]}),
        grounding({"bbox": [1, 2, 11, 12], "phrase": "a cat"}), grounding())
    source = read(path, with_masks=True)
    masks = source[0]["masks"]
    assert masks.dtype == bool and masks.shape == (6, 30, 40)
    np.testing.assert_array_equal(masks[:2], [first, second])
    assert masks[2:].sum((1, 2)).tolist() == [6, 12, 6, 36] and masks[5, 3:9, 3:9].all()
    assert "masks" not in source[1] and "masks" not in source[2] and "masks" not in read(path)[0]
    np.testing.assert_array_equal(read(path, with_masks=True, min_score=0.5)[0]["masks"], masks[:5])
    path = file(detection({"bbox": [1, 2, 11, 12], "label": 0, "category": "cat", "segmentation": encode_mask(first)},
                          {"bbox": [50, 2, 61, 12], "label": 0, "category": "cat", "segmentation": encode_mask(second)},
                          {"bbox": [5, 5, 7, 8], "label": 0, "category": "cat"}))
    record = read(path, with_masks=True, bad_boxes="repair")[0]
    assert record["boxes"].tolist() == [[1, 2, 10, 11], [5, 5, 6, 7]] and record["masks"][1].sum() == 6
    np.testing.assert_array_equal(record["masks"][0], first)


@pytest.mark.parametrize("segmentation, message", [
    ({"size": [40, 30], "counts": [1200]}, r"found size \[40, 30\], expected \[30, 40\] \(height, width\)"),
    ({"size": 30, "counts": [1200]}, r"found size 30, expected \[30, 40\]"),
    ({"size": [30, 40], "counts": "0"}, "found runs of 0 pixels in all, expected 1200"),
    ({"size": [30, 40], "counts": [1300, -100]}, r"found counts \[1300, -100\], expected run lengths"),
    ({"size": [30, 40], "counts": 1200}, "found counts 1200, expected run lengths"),
    ({"size": [30, 40]}, r"found \{'size': \[30, 40\]\}, expected polygons .* or run lengths"),
    ("mask.png", "found 'mask.png', expected polygons .* or run lengths"), ([1, 2, 3, 4], r"found \[1, 2, 3, 4\], expected polygons"),
])
def test_bad_masks_are_named(file, segmentation, message):
    good = {"bbox": [1, 2, 11, 12], "phrase": "a cat", "segmentation": encode_mask(shapes(1)[0])}
    path = file(grounding(), grounding(good, {"bbox": [1, 2, 11, 12], "phrase": "a cat", "segmentation": segmentation}))
    assert len(read(path)[1]["boxes"]) == 2
    with pytest.raises(ValueError, match=r"data\.jsonl, line 2, box 1: cannot read its segmentation: " + message):
        read(path, with_masks=True)[1]


@pytest.mark.parametrize("segmentation", [encode_mask(shapes(1)[0]), [None], [[1, 2, 3, 4, 5, 6]]])
def test_several_boxes_of_a_region_need_several_masks(file, segmentation):
    path = file(grounding({"bbox": [[1, 2, 11, 12], [3, 4, 5, 6]], "phrase": "a cat", "segmentation": segmentation}))
    with pytest.raises(ValueError, match="line 1: found 2 boxes of a region and the segmentation .* expected a list with one for each"):
        read(path, with_masks=True)[0]


@pytest.mark.parametrize("task", ["detection", "caption"])
def test_a_source_comes_back(task, tmp_path):
    scenes = Scenes(seed=5, num_examples=4, split="train", task=task, canvas=(64, 96), max_objects=4)
    for index in range(4):
        Image.fromarray(scenes[index]["image"]).save(tmp_path / f"{index}.png")
    assert odvg.write(scenes, tmp_path / "scenes.jsonl", lambda index: f"{index}.png") == 4
    found = read(tmp_path / "scenes.jsonl", with_masks=True)
    for index in range(4):
        before, after = scenes[index], found[index]
        np.testing.assert_array_equal(after["masks"], before["masks"])
        np.testing.assert_array_equal(after["image"](), before["image"])
        np.testing.assert_allclose(after["boxes"], before["boxes"], atol=0.01)
        assert after["image_id"] == before["image_id"]
        if task == "caption":
            assert after["caption"] == before["caption"]
            assert after["spans"] == [[tuple(span) for span in spans] for spans in before["spans"]]
        else:
            assert ([found.class_names[c] for c in after["classes"]]
                    == [scenes.class_names[c] for c in before["classes"]])


@pytest.mark.parametrize("entry, message", [
    (grounding({"bbox": [5, 5, 5, 9], "phrase": "cat"}), r"line 1: found an inverted or empty box \[5, 5, 5, 9\]"),
    (grounding({"bbox": [50, 5, 60, 9], "phrase": "cat"}), "a box outside the image"),
    (grounding({"bbox": [5, "x", 5, 9], "phrase": "cat"}), "expected four finite numbers"),
    (grounding({"bbox": [1, 1, 5, 9], "phrase": "dog"}), "found phrase 'dog' and no tokens_positive"),
    (grounding({"bbox": [1, 1, 5, 9], "tokens_positive": [[0, 99]]}), r"found span \[0, 99\], expected 0 ≤ begin"),
    (grounding({"bbox": [1, 1, 5, 9], "tokens_positive": [[0, True]]}), "whole numbers"),
    ({"grounding": {"regions": []}}, "'caption': found nothing, expected str"),
    (detection({"bbox": [1, 1, 5, 9], "label": 3}), "'category': found nothing"),
    ({}, "expected one of 'detection' and 'grounding'"),
])
def test_bad_lines_are_named(file, entry, message):
    with pytest.raises(ValueError, match=message):
        read(file(entry))[0]


def test_repair_drops_what_cannot_be_used(file):
    bad = grounding({"bbox": [[5, 5, 5, 9], [1, 1, 9, 9]], "tokens_positive": [[0, 99], [2, 5]]})
    record = read(file(bad), bad_boxes="repair")[0]
    assert record["boxes"].tolist() == [[1, 1, 8, 8]] and record["spans"] == [[(2, 5)]]


@pytest.mark.parametrize("image_id", [-5, 2**31, "7", 1.5, True])
def test_ids_that_would_be_lost_on_the_way_are_refused(file, image_id):
    with pytest.raises(ValueError, match=r"line 1: found image id .*, expected a whole number from 0 to 2147483647"):
        read(file(grounding() | {"image_id": image_id}))[0]


def test_captions_without_boxes_are_replaced_in_training(file):
    assert read(file(grounding())).replace_empty
    assert not read(file(detection({"bbox": [1, 2, 9, 9], "label": 0, "category": "cat"}))).replace_empty


def test_mixed_files_and_other_image_sizes_are_refused(file, tmp_path):
    source = read(file(grounding(), detection()))
    with pytest.raises(ValueError, match="line 2: found no 'grounding'"):
        source[1]
    Image.new("RGB", (41, 30)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="line 1: found 41x30 pixels .* expected 40x30"):
        source[0]["image"]()


@pytest.mark.parametrize("text, lines", [
    ("", []), ("\n", []), ("a", ["a"]), ("a\n", ["a"]), ("a\n\nb\r\n\n\n", ["a", "", "b"]), ("a\tb\nc", ["a\tb", "c"])])
def test_lines(tmp_path, text, lines):
    (tmp_path / "f.tsv").write_bytes(text.encode())
    found = LineFile(tmp_path / "f.tsv")
    assert [found[i].decode() for i in range(len(found))] == lines
    with pytest.raises(IndexError, match=f"line {len(lines)}"):
        found[len(lines)]


@pytest.mark.parametrize("index, message", [("0\n3\n", None), ("0\n9\n", "not rising"), ("2\n3\n", "not rising"),
                                            ("0\nx\n", "expected one byte offset"), ("0\n", "several lines")])
def test_a_line_index_is_used_and_checked(tmp_path, index, message):
    (tmp_path / "f.tsv").write_text("ab\ncd\n")
    (tmp_path / "f.lineidx").write_text(index)
    if message is None:
        assert LineFile(tmp_path / "f.tsv")[1] == b"cd"
        return
    with pytest.raises(ValueError, match=message):
        LineFile(tmp_path / "f.tsv")[0]
