"""COCO average precision: official numbers, perfect and no predictions, subsets of classes, ground truth."""
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from glipv2_jax.evaluation.coco_ap import coco_ap, ground_truth_from_source
from glipv2_jax.evaluation.coco_json import detection_rows
from input_pipeline.masks import encode_mask

BOXES = np.float32([[10, 10, 29, 39], [50, 10, 99, 79], [5, 60, 9, 64]])


@pytest.fixture(scope="module")
def official():
    return json.loads((Path(__file__).parent / "reference" / "coco_detections.json").read_text())


class Records(list):
    """A list of records as a source of three classes."""
    name = "made-up"
    class_names = ("cat", "dog", "owl")
    category_ids = (2, 5, 11)


def record(image_id, **more):
    return {"image": np.zeros((80, 100, 3), np.uint8), "image_id": image_id, "boxes": BOXES,
            "classes": np.int32([0, 1, 0]), **more}


def perfect(source):
    return [row for r in source for row in detection_rows(
        r["image_id"], r["boxes"], np.linspace(0.9, 0.5, len(r["boxes"])), r["classes"],
        category_ids=source.category_ids)]


def test_equals_the_official_numbers(official):
    scores = coco_ap(official["ground_truth"], official["results"])
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
    expected = {name: official["expected"][name] for name in names}
    assert {name: scores[name] for name in names} == pytest.approx(expected, abs=1e-12)
    known = [value for value in scores["per_class_AP50"].values() if value is not None]
    assert np.mean(known) == pytest.approx(official["expected"]["AP50"], abs=1e-12)
    assert [value is None for value in scores["per_class_AP50"].values()] == [
        value is None for value in official["expected"]["per_category_AP"].values()]


def test_is_silent_and_leaves_its_inputs_alone(official, capsys):
    before = json.dumps([official["ground_truth"], official["results"]])
    coco_ap(official["ground_truth"], official["results"])
    assert json.dumps([official["ground_truth"], official["results"]]) == before
    assert capsys.readouterr().out == ""


def test_a_subset_of_classes_is_scored_alone(official):
    both = coco_ap(official["ground_truth"], official["results"], classes=["dog", 17])
    every = coco_ap(official["ground_truth"], official["results"])["per_class_AP50"]
    assert both["per_class_AP50"] == {name: every[name] for name in ("cat", "dog")}
    assert both["AP50"] == pytest.approx((every["cat"] + every["dog"]) / 2)


def test_perfect_predictions_score_one():
    source = Records([record(4), record(8)])
    scores = coco_ap(ground_truth_from_source(source), perfect(source))
    assert scores["AP"] == scores["AP50"] == scores["AR100"] == pytest.approx(1)
    assert scores["per_class_AP50"] == {"cat": pytest.approx(1), "dog": pytest.approx(1), "owl": None}


def test_no_predictions_score_zero_not_an_error():
    scores = coco_ap(ground_truth_from_source(Records([record(4)])), [])
    assert scores["AP"] == 0 and scores["per_class_AP50"] == {"cat": 0, "dog": 0, "owl": None}


def test_sizes_without_ground_truth_are_none():
    small = record(4, boxes=BOXES[:1], classes=np.int32([0]))
    scores = coco_ap(ground_truth_from_source(Records([small])), [])
    assert scores["APl"] is None
    assert scores["APs"] == 0


def test_annotations_numbered_from_zero_lose_nothing():
    source = Records([record(4)])
    truth = ground_truth_from_source(source)
    for annotation in truth["annotations"]:
        annotation["id"] -= 1
        del annotation["area"], annotation["iscrowd"]
    assert coco_ap(truth, perfect(source))["AP"] == pytest.approx(1)


def test_masks_are_scored_by_their_own_overlap():
    masks = np.zeros((3, 80, 100), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, BOXES.astype(int), strict=True):
        mask[y1:y2 + 1, x1:x2 + 1] = True
    truth = ground_truth_from_source(Records([record(4, masks=masks)]))
    assert [annotation["area"] for annotation in truth["annotations"]] == [600, 3500, 25]
    rows = detection_rows(4, BOXES, [0.9, 0.8, 0.7], [0, 1, 0], category_ids=(2, 5, 11), masks=masks)
    assert coco_ap(truth, rows, iou_type="segm")["AP"] == pytest.approx(1)
    for row in rows:
        row["segmentation"] = encode_mask(np.zeros((80, 100), bool))
    assert coco_ap(truth, rows, iou_type="segm")["AP"] == 0
    assert coco_ap(truth, rows)["AP"] == pytest.approx(1)


def test_masks_need_masks_in_the_ground_truth():
    truth = ground_truth_from_source(Records([record(4)]))
    with pytest.raises(ValueError, match="annotations without segmentation"):
        coco_ap(truth, [], iou_type="segm")


def test_paths_will_do(tmp_path):
    source = Records([record(4)])
    (tmp_path / "truth.json").write_text(json.dumps(ground_truth_from_source(source)))
    (tmp_path / "found.json").write_text(json.dumps(perfect(source)))
    assert coco_ap(tmp_path / "truth.json", str(tmp_path / "found.json"))["AP"] == pytest.approx(1)


@pytest.mark.parametrize("change, message", [
    ({"image_id": 99}, "image_id 99"), ({"category_id": 1}, "category_id 1")])
def test_rows_that_do_not_belong_are_refused(change, message):
    source = Records([record(4)])
    rows = perfect(source)
    rows[0] |= change
    with pytest.raises(ValueError, match=message):
        coco_ap(ground_truth_from_source(source), rows)


def test_files_that_are_no_results_are_named(tmp_path):
    (tmp_path / "found.json").write_text("[{")
    truth = ground_truth_from_source(Records([record(4)]))
    with pytest.raises(ValueError, match="found.json: not a JSON file"):
        coco_ap(truth, tmp_path / "found.json")
    with pytest.raises(ValueError, match="row 0: found no bbox"):
        coco_ap(truth, [{"image_id": 4, "category_id": 2, "score": 1.0}])


def test_unknown_class_is_refused():
    with pytest.raises(ValueError, match="zebra"):
        coco_ap(ground_truth_from_source(Records([record(4)])), [], classes=["zebra"])


class TestGroundTruthFromSource:
    def test_lists_every_image_and_box(self):
        empty = record(8, boxes=np.zeros((0, 4), np.float32), classes=np.int32([]))
        read = record(4, is_crowd=np.array([False, False, True]))
        read["image"] = lambda: np.zeros((80, 100, 3), np.uint8)     # a record may read its picture late
        truth = ground_truth_from_source(Records([read, empty]))
        assert truth["images"] == [{"id": i, "height": 80, "width": 100} for i in (4, 8)]
        assert truth["annotations"][0] == {"id": 1, "image_id": 4, "category_id": 2, "bbox": [10, 10, 20, 30],
                                           "area": 600, "iscrowd": 0}
        assert [annotation["iscrowd"] for annotation in truth["annotations"]] == [0, 0, 1]
        assert truth["categories"][2] == {"id": 11, "name": "owl"}
        json.dumps(truth)

    def test_some_indices_only(self):
        truth = ground_truth_from_source(Records([record(4), record(8), record(9)]), indices=np.array([2, 0]))
        assert [image["id"] for image in truth["images"]] == [9, 4]

    def test_refuses_captions_repeated_ids_and_boxes_without_class(self):
        with pytest.raises(ValueError, match="no class names"):
            ground_truth_from_source(SimpleNamespace(name="captions", class_names=()))
        with pytest.raises(ValueError, match="image id 4 at index 1"):
            ground_truth_from_source(Records([record(4), record(4)]))
        with pytest.raises(ValueError, match="box 1 has class -1"):
            ground_truth_from_source(Records([record(4, classes=np.int32([0, -1, 0]))]))


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_faster_scorer_gives_the_same_numbers(iou_type, shared_data):
    folder = shared_data("eval_parity/coco_det")
    files = folder / "instances_val2014_100.json", folder / f"instances_val2014_fake{iou_type}100_results.json"
    slow, fast = (coco_ap(*files, iou_type=iou_type, scorer=scorer) for scorer in ("pycocotools", "faster"))
    expected = json.loads((folder / "expected.json").read_text())[iou_type]
    per_class = slow.pop("per_class_AP50"), fast.pop("per_class_AP50")
    assert fast == pytest.approx(slow, abs=1e-6)
    assert per_class[1] == pytest.approx(per_class[0], abs=1e-6)
    stats = expected.get("stats", expected)
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert slow[name] == pytest.approx(stats[name], abs=1e-9)
    with pytest.raises(ValueError, match="'slow', expected pycocotools or faster"):
        coco_ap(*files, scorer="slow")


@pytest.mark.parametrize("seed", range(4))
def test_both_scorers_on_hostile_detections(seed):
    """Ties, duplicates, crowds, empty images and classes, areas on the edges of their ranges."""
    rng = np.random.default_rng(seed)
    sides = np.array([1, 31, 32, 33, 95, 96, 97, 200])
    boxes = lambda n: [[*rng.integers(0, 300, 2).tolist(), *rng.choice(sides, 2).tolist()] for _ in range(n)]
    truth = {"images": [{"id": i} for i in range(12)], "categories": [{"id": c, "name": str(c)} for c in range(1, 7)],
             "annotations": []}
    rows = []
    for image in range(9):
        for box in boxes(rng.integers(0, 8)):
            truth["annotations"].append({"id": len(truth["annotations"]) + 1, "image_id": image, "bbox": box,
                                         "category_id": int(rng.integers(1, 5)), "area": box[2] * box[3],
                                         "iscrowd": int(rng.random() < 0.2)})
    for a in truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            rows.append({"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"],
                         "score": float(rng.choice([0.3, 0.5, 0.9]))})
    rows += [{"image_id": int(rng.integers(0, 12)), "category_id": int(rng.integers(1, 7)), "bbox": box,
              "score": float(rng.choice([0.3, 0.5, 0.9]))} for box in boxes(60)]
    slow, fast = (coco_ap(truth, rows, scorer=scorer) for scorer in ("pycocotools", "faster"))
    assert slow.pop("per_class_AP50") == pytest.approx(fast.pop("per_class_AP50"), abs=1e-6)
    assert slow == pytest.approx(fast, abs=1e-6)
