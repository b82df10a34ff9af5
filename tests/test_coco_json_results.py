"""COCO result rows and files: coordinates, order, plain numbers, refusals."""
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from glipv2_jax.evaluation.coco_ap import coco_ap
from glipv2_jax.evaluation.coco_json import PROTOCOL_KEYS, checked_rows, detection_rows, write_protocol, write_results

PROTOCOL = {key: "as in the test" for key in PROTOCOL_KEYS}


def test_box_returns_to_the_files_pixels_and_gets_its_plus_one_after():
    row, = detection_rows(7, np.float32([[10, 20, 29, 59]]), np.float32([0.5]), np.int32([1]),
                          category_ids=(3, 18), scale=(0.5, 2.0))
    assert row == {"image_id": 7, "category_id": 18, "bbox": [5.0, 40.0, 10.5, 79.0], "score": 0.5}


def test_rows_hold_plain_python_numbers_best_first():
    boxes, scores, labels = np.zeros((3, 4), np.float32), np.float32([0.2, 0.9, 0.4]), np.int32([0, 1, 0])
    rows = detection_rows(np.int64(7), boxes, scores, labels, category_ids=np.int64([1, 2]))
    assert [row["category_id"] for row in rows] == [2, 1, 1]
    for row in rows:
        assert [type(value) for value in row.values()] == [int, int, list, float]
        assert [type(value) for value in row["bbox"]] == [float] * 4


def test_no_detections_give_no_rows():
    assert detection_rows(7, np.zeros((0, 4)), [], [], category_ids=(1,)) == []


# pycocotools 2.0.11 has not caught up with NumPy 2 in decode.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_survive_as_run_lengths():
    masks = np.random.default_rng(0).random((2, 6, 9)) > 0.5
    rows = detection_rows(7, np.zeros((2, 4)), [0.1, 0.2], [0, 0], category_ids=(1,), masks=masks)
    decoded = [coco_mask.decode(row["segmentation"]) for row in json.loads(json.dumps(rows))]
    np.testing.assert_array_equal(np.stack(decoded), masks[::-1])


@pytest.mark.parametrize("change, message", [
    ({"scores": [0.5, 0.5]}, "different lengths"),
    ({"labels": [2]}, "found labels 2..2, expected 0..1"),
    ({"labels": [-1]}, "found labels -1"),
    ({"image_id": -1}, "padding"),
    ({"scores": [np.nan]}, "not finite"),
    ({"masks": np.zeros((2, 4, 4), bool)}, "different lengths"),
])
def test_refuses_what_does_not_fit(change, message):
    detections = {"image_id": 7, "boxes": np.zeros((1, 4)), "scores": [0.5], "labels": [0],
                  "category_ids": (1, 2)}
    with pytest.raises(ValueError, match=message):
        detection_rows(**detections | change)


def test_file_is_sorted_by_image_then_score_and_loads_in_pycocotools(tmp_path):
    rows = [{"image_id": i, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 4.0], "score": s}
            for i, s in ((9, 0.1), (2, 0.3), (9, 0.8), (2, 0.7))]
    path = tmp_path / "made" / "detections.json"
    write_results(path, rows)
    assert [(row["image_id"], row["score"]) for row in json.loads(path.read_text())] == [
        (2, 0.7), (2, 0.3), (9, 0.8), (9, 0.1)]

    truth = COCO()
    truth.dataset = {"images": [{"id": 2}, {"id": 9}], "categories": [{"id": 1}], "annotations": []}
    truth.createIndex()
    assert len(truth.loadRes(str(path)).anns) == 4
    assert [file.name for file in path.parent.iterdir()] == ["detections.json"]    # no partial file is left


def test_no_results_are_an_empty_list(tmp_path):
    write_results(tmp_path / "detections.json", [])
    assert json.loads((tmp_path / "detections.json").read_text()) == []


def test_a_failed_write_keeps_the_former_file(tmp_path):
    path = tmp_path / "protocol.json"
    write_protocol(path, PROTOCOL)
    with pytest.raises(ValueError):
        write_protocol(path, PROTOCOL | {"AP": float("nan")})
    assert json.loads(path.read_text()) == PROTOCOL


def test_protocol_takes_arrays_and_paths(tmp_path):
    path = tmp_path / "protocol.json"
    sizes = np.int32([800, 1333])
    write_protocol(path, PROTOCOL | {"AP": np.float32(0.5), "sizes": sizes, "checkpoint": tmp_path})
    found = json.loads(path.read_text())
    assert (found["AP"], found["sizes"], found["checkpoint"]) == (0.5, [800, 1333], str(tmp_path))


def test_protocol_names_what_is_missing(tmp_path):
    partial = {key: value for key, value in PROTOCOL.items() if key not in ("prompt", "metric")}
    with pytest.raises(ValueError, match=r"missing keys \['prompt', 'metric'\]"):
        write_protocol(tmp_path / "p.json", partial)


@pytest.mark.parametrize("rows, message", [
    ({"a": []}, "results: found a dict, expected a list of objects with image_id, score"),
    ([7], "row 0: found 7, expected an object"),
    ([{"image_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}, {"image_id": 1}], "row 1: found no score"),
    ([{"image_id": 1, "score": "0.5", "bbox": [1, 2, 3, 4]}], "row 0: found score '0.5', expected a finite number"),
    ([{"image_id": 1, "score": float("nan"), "bbox": [1, 2, 3, 4]}], "row 0: found score nan"),
    ([{"image_id": 1, "score": 1, "bbox": [1, 2, 3]}], r"row 0: found bbox \[1, 2, 3\], expected \[x, y, width, height\]")])
def test_rows_of_other_models_are_checked(rows, message):
    with pytest.raises(ValueError, match=message):
        checked_rows(rows, ("image_id", "score", "bbox"))
    good = [{"image_id": 1, "score": 1, "bbox": (1, 2, 3.5, 4)}]
    assert checked_rows(good, ("image_id", "score", "bbox")) is good


def test_conversion_and_scores_equal_the_reference(load_reference, shared_data):
    told, arrays = load_reference("evaluation/coco_convert.json"), load_reference("evaluation/coco_convert.npz")
    path = shared_data("coco_small/annotations/instances_val.json")
    category_ids = sorted(category["id"] for category in json.loads(path.read_text())["categories"])
    results = {}
    for legacy_width in (True, False):
        rows = []
        for place, image_id in enumerate(told["image_ids"]):
            (width, height, new_width, new_height) = np.ravel(told["sizes_original_wh_resized_wh"][place])
            found = slice(told["offsets"][place], told["offsets"][place + 1])
            rows += detection_rows(image_id, arrays["boxes"][found], arrays["scores"][found], arrays["labels"][found] - 1,
                                   category_ids=category_ids, scale=(new_height / height, new_width / width),
                                   legacy_width=legacy_width)
        results[legacy_width] = rows

    def key(row):
        return row["image_id"], row["category_id"], round(row["score"], 6), round(row["bbox"][0], 1)
    theirs = sorted(told["bbox_results"], key=key)
    for ours, expected in zip(sorted(results[True], key=key), theirs, strict=True):
        assert (ours["image_id"], ours["category_id"]) == (expected["image_id"], expected["category_id"])
        np.testing.assert_allclose([*ours["bbox"], ours["score"]], [*expected["bbox"], expected["score"]], atol=1e-3)
    for legacy_width, stats in ((True, told["bbox"]["stats"]), (False, told["bbox_without_plus_one"])):
        scores = coco_ap(path, results[legacy_width])
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"):
            assert scores[name] == pytest.approx(stats[name], abs=1e-4), (legacy_width, name)
    masks = coco_ap(path, told["segm_results"], iou_type="segm")
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"):
        assert masks[name] == pytest.approx(told["segm"]["stats"][name], abs=1e-9), name
