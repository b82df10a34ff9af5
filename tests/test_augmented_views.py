"""Test-time augmentation equals the reference's: geometry of views, and every rule of merging."""
import dataclasses

import numpy as np
import pytest

from glipv2_jax.evaluation.augmented_views import RELEASED_VIEWS, RULES, View, merge


@pytest.fixture(scope="module")
def golden(load_reference):
    return load_reference("evaluation/tta.json"), load_reference("evaluation/tta.npz")


def _seen(golden, case, image):
    """Boxes of all passes of an image in its own pixels, as the reference has them before merging."""
    told, arrays = golden
    settings = told["defaults"] | told["cases"][case]["settings"]
    ranges = dict(zip(settings["SCALES"], settings["RANGES"])) if len(settings["RANGES"]) == len(settings["SCALES"]) else {}
    width, height = told["image_sizes_wh"][image]
    found = []
    for scale, max_size, flip in told["cases"][case]["passes_scale_maxsize_flip"]:
        one = next(p for p in told["passes"] if (p["image"], p["scale"], p["max_size"], int(p["flip"])) == (
            image, scale, max_size, int(flip)))
        rows = slice(one["start"], one["end"])
        view = View(scale, max_size, bool(flip), *ranges.get(scale, (0, 10**6)))
        boxes, keep = view.to_original(arrays["in_boxes"][rows], one["size_wh"][::-1], (height, width))
        found.append((boxes, arrays["in_scores"][rows][keep], arrays["in_labels"][rows][keep]))
    return [np.concatenate(part) for part in zip(*found)], settings


def test_views_return_to_the_image_as_in_the_reference(golden):
    told, arrays = golden
    stored = [(case, image) for case in told["cases"] for image in told["cases"][case]["images"]
              if f"{case}.img{image}.concat_boxes" in arrays]
    assert stored
    for case, image in stored:
        (boxes, scores, labels), _ = _seen(golden, case, image)
        np.testing.assert_allclose(boxes, arrays[f"{case}.img{image}.concat_boxes"], atol=2e-4, err_msg=case)
        np.testing.assert_array_equal(scores, arrays[f"{case}.img{image}.concat_scores"], err_msg=case)
        np.testing.assert_array_equal(labels, arrays[f"{case}.img{image}.concat_labels"], err_msg=case)


def test_every_case_of_the_reference_is_merged_equally(golden):
    told, arrays = golden
    # To the reference an unknown rule is "none"; ours is an error, see below.
    cases = [name for name in told["cases"] if told["cases"][name]["settings"].get("SPECIAL_NMS", "none") in RULES]
    assert cases
    for case in cases:
        for image in told["cases"][case]["images"]:
            (boxes, scores, labels), settings = _seen(golden, case, image)
            rule, threshold = settings["SPECIAL_NMS"], settings["TH"]
            merged = merge(boxes, scores, labels, rule, threshold or None, keep=settings["PRE_NMS_TOP_N"],
                           classes=settings["SELECT_CLASSES"] or range(1, settings["NUM_CLASSES"]),
                           score_floor=threshold if rule == "soft-nms" else 0.05)
            for name, value in zip(("boxes", "scores", "labels"), merged):
                np.testing.assert_allclose(value, arrays[f"{case}.img{image}.{name}"], atol=1e-3, rtol=1e-5,
                                           err_msg=f"{case}, image {image}")


def test_unit_cases_of_every_rule(golden):
    for name, case in golden[0]["unit"].items():
        if name == "exactly_0.6_continuous":            # depends on how a comparison is rounded
            continue
        for rule in RULES:
            boxes, scores, _ = merge(case["boxes"], case["scores"], np.ones(len(case["scores"]), int), rule, case["th"],
                                     score_floor=case["th"] if rule == "soft-nms" else 0.05)
            np.testing.assert_allclose(boxes, np.reshape(case[rule]["boxes"], (-1, 4)), atol=1e-3, err_msg=f"{name}, {rule}")
            np.testing.assert_allclose(scores, case[rule]["scores"], rtol=1e-5, err_msg=f"{name}, {rule}")


def test_departures_from_the_reference():
    near = np.array([[0, 0, 100, 100], [0, 0, 100, 90], [300, 300, 350, 350]], np.float32), [0.9, 0.8, 0.2], [1, 1, 1]
    assert len(merge(*near, "soft-nms")[1]) == 3                       # the floor is not the threshold of 0.6
    assert len(merge(*near, "soft-nms", score_floor=0.6)[1]) == 1
    with pytest.raises(ValueError, match="'nms'.*soft-vote"):
        merge(*near, "nms")


def test_nothing_to_merge_and_the_released_views():
    boxes, scores, labels = merge(np.zeros((0, 4)), [], np.zeros(0, int))
    assert boxes.shape == (0, 4) and not len(scores) and not len(labels)
    assert len(RELEASED_VIEWS) == 24 and View(*RELEASED_VIEWS[0]) == View(400, 2500, False, 96, 10_000)
    assert dataclasses.astuple(View(800)) == (800, 2500, False, 0, 10_000)


def test_a_mirrored_box_returns_to_its_place():
    box = np.array([[10, 20, 30, 60]], np.float32)
    mirrored = np.array([[200 - 30 - 1, 20, 200 - 10 - 1, 60]], np.float32)
    boxes, keep = View(100, mirrored=True).to_original(mirrored, (100, 200), (100, 200))
    np.testing.assert_array_equal(boxes, box)
    assert keep.all()
