"""LVIS average precision: the reference's evaluator, the official tool, and the federated rules by hand."""
import json
import re

import numpy as np
import pytest

from glipv2_jax.evaluation.lvis_ap import BestPerClass, lvis_ap, write_results

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR", "ARs", "ARm", "ARl")


@pytest.fixture(scope="module")
def case(reference_dir, shared_data):
    folder = shared_data("eval_parity/lvis_val_100")
    if not (reference_dir / "evaluation" / "lvis_fixed_ap.json").exists():
        pytest.skip(f"{reference_dir} holds no evaluation")
    extended = dict(np.load(reference_dir / "evaluation" / "lvis_extended.npz"))
    rows = json.loads((folder / "lvis_made_results.json").read_text())
    made = {key: np.array([row[key] for row in rows]) for key in ("image_id", "category_id", "bbox", "score")}
    extended["bbox"] = extended.pop("bbox_xywh")
    return (json.loads((folder / "lvis_val_100.json").read_text()), {"made": made, "extended": extended},
            json.loads((reference_dir / "evaluation" / "lvis_fixed_ap.json").read_text())["cases"],
            json.loads((folder / "expected.json").read_text()), folder)


def _best(arrays, limit):
    best = BestPerClass(limit)
    for image in np.unique(arrays["image_id"]):
        rows = arrays["image_id"] == image
        best.add(image, arrays["bbox"][rows], arrays["score"][rows], arrays["category_id"][rows])
    return best.arrays()


def test_every_case_of_the_reference_is_equal(case):
    truth, sets, cases, _, _ = case
    for name, expected in cases.items():
        topk = re.search(r"topk_(\d+)", name)
        # The fixed protocol keeps the best of each class; the other limits each image.
        limit = int(topk[1]) if topk else 10_000 if expected["max_dets_param"] < 0 else None
        scores = lvis_ap(truth, _best(sets[name.split("_")[0]], limit), max_dets=expected["max_dets_param"])
        for key, value in expected["metrics"].items():
            assert scores[key.split("@")[0]] == pytest.approx(value, abs=1e-12), (name, key)
        of_class = expected.get("per_class_ap_ap50_ar", {})
        assert not of_class or scores["per_class"].keys() == {int(key) for key in of_class}
        for key, values in of_class.items():
            np.testing.assert_allclose(scores["per_class"][int(key)], values, atol=1e-12, err_msg=f"{name}, class {key}")


def test_equal_to_the_official_tool_and_from_files(case, tmp_path):
    truth, sets, _, expected, folder = case
    scores = lvis_ap(folder / "lvis_val_100.json", folder / "lvis_made_results.json", max_dets=300)
    official = expected.get("results", expected.get("bbox", expected))
    for key in ("AP", "AP50", "APr", "APc", "APf"):
        assert scores[key] == pytest.approx(official[key], abs=5e-4)
    write_results(tmp_path / "new" / "rows.json", _best(sets["made"], None))
    assert len(json.loads((tmp_path / "new" / "rows.json").read_text())) == 2269
    again = lvis_ap(truth, tmp_path / "new" / "rows.json", max_dets=300)
    assert again["AP"] == pytest.approx(scores["AP"], abs=1e-6)


def test_truth_as_prediction_is_perfect(case):
    truth = case[0]
    rows = [{"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1.0}
            for a in truth["annotations"]]
    assert lvis_ap(truth, rows)["AP"] == pytest.approx(1)


def _truth(annotations, negative=(), not_exhaustive=()):
    """Two classes, one image of 1000 pixels; annotations: (category, box)."""
    return {"images": [{"id": 7, "neg_category_ids": list(negative), "not_exhaustive_category_ids": list(not_exhaustive)}],
            "categories": [{"id": 3, "frequency": "r"}, {"id": 9, "frequency": "f"}],
            "annotations": [{"id": n, "image_id": 7, "category_id": c, "bbox": box, "area": box[2] * box[3]}
                            for n, (c, box) in enumerate(annotations, start=1)]}


def _row(category, box, score):
    return {"image_id": 7, "category_id": category, "bbox": box, "score": score}


BOX, ELSEWHERE = [10, 10, 50, 50], [500, 500, 50, 50]


def test_federated_rules_by_hand():
    hit, miss = _row(3, BOX, 0.5), _row(3, ELSEWHERE, 0.9)
    assert lvis_ap(_truth([(3, BOX)]), [hit])["AP"] == pytest.approx(1)
    # A better scored miss halves the precision, unless the class is not annotated exhaustively.
    assert lvis_ap(_truth([(3, BOX)]), [hit, miss])["AP"] == pytest.approx(0.5)
    assert lvis_ap(_truth([(3, BOX)], not_exhaustive=[3]), [hit, miss])["AP"] == pytest.approx(1)
    # A class that is neither present nor known to be absent is not judged; without truth it has no score.
    both = _truth([(3, BOX)])
    assert lvis_ap(both, [hit, _row(9, ELSEWHERE, 0.9)])["APf"] is None
    assert lvis_ap(both, [hit])["APr"] == pytest.approx(1)


def test_a_class_known_to_be_absent_counts_as_wrong_in_its_own_average():
    truth = _truth([(9, BOX)], negative=[3])
    truth["images"].append({"id": 8, "neg_category_ids": [9], "not_exhaustive_category_ids": []})
    right, wrong = _row(9, BOX, 0.5), _row(9, ELSEWHERE, 0.9) | {"image_id": 8}
    assert lvis_ap(truth, [right, wrong])["AP"] == pytest.approx(0.5)
    truth["images"][1]["neg_category_ids"] = []
    assert lvis_ap(truth, [right, wrong])["AP"] == pytest.approx(1)


def test_ranges_of_area_ignore_what_lies_outside():
    small, large = [0, 0, 10, 10], [100, 100, 200, 200]
    scores = lvis_ap(_truth([(3, small), (3, large)]), [_row(3, large, 0.9), _row(3, ELSEWHERE, 0.8), _row(3, small, 0.5)])
    # The box elsewhere has 2500 square pixels: neither small nor large.
    assert scores["APs"] == pytest.approx(1) and scores["APl"] == pytest.approx(1) and scores["APm"] is None
    assert scores["AP"] < 1


def test_best_per_class_is_bounded_and_keeps_the_first_of_equals():
    best = BestPerClass(2)
    for image in range(9):
        best.add(image, [[0, 0, 1, 1]], [0.5 if image < 8 else 0.9], [3])
    kept = best.arrays()
    assert kept["image_id"].tolist() == [0, 8] and kept["score"].tolist() == [0.5, 0.9]
    assert BestPerClass().arrays()["bbox"].shape == (0, 4)


def test_what_is_held_does_not_grow_with_the_images():
    rng = np.random.default_rng(0)
    often, once, held = BestPerClass(5, buffer=16), BestPerClass(5), []
    for image in range(60):
        found = image, rng.random((7, 4)), rng.integers(0, 4, 7) / 4, rng.integers(1, 4, 7)          # many equal scores
        for best in (often, once):
            best.add(*found)
        held.append(sum(len(part[0]) for part in often._parts))
    assert max(held) <= 3 * 5 + 16 + 7
    for key, values in once.arrays().items():
        np.testing.assert_array_equal(often.arrays()[key], values)


@pytest.mark.parametrize("change, message", [
    (lambda t, r: t["images"][0].pop("neg_category_ids"), "neg_category_ids.*of LVIS"),
    (lambda t, r: t["categories"][0].pop("frequency"), "frequency"),
    (lambda t, r: t.pop("annotations"), "annotations"),
    (lambda t, r: r[0].update(image_id=1), "image_id 1"),
    (lambda t, r: r[0].pop("score"), "no score")])
def test_bad_input_is_named(change, message):
    truth, rows = _truth([(3, BOX)]), [_row(3, BOX, 1.0)]
    change(truth, rows)
    with pytest.raises(ValueError, match=message):
        lvis_ap(truth, rows)


def test_no_detections():
    assert lvis_ap(_truth([(3, BOX)]), [])["AP"] == 0
