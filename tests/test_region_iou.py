"""Overlap of regions, by hand."""
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from glipv2_jax.evaluation.region_iou import region_iou, union_of_boxes, union_of_masks, union_of_runs
from input_pipeline.masks import encode_mask

SIZE = (20, 30)


def test_by_hand():
    true = union_of_boxes([[0, 0, 9, 9]], SIZE)                                   # 100 pixels
    half = union_of_boxes([[0, 0, 9, 4]], SIZE)                                   # 50 of them
    scores = region_iou([(true, true), (true, half), (true, None)])
    assert scores == {"mean_IoU": pytest.approx(0.5), "cumulative_IoU": pytest.approx(150 / 300), "num_phrases": 3,
                      "precision@0.5": pytest.approx(1 / 3), "precision@0.7": pytest.approx(1 / 3),
                      "precision@0.9": pytest.approx(1 / 3)}


def test_nothing_and_everything():
    assert region_iou([])["mean_IoU"] is None
    assert region_iou([(None, None)])["mean_IoU"] == 0
    assert region_iou([(None, union_of_boxes([[0, 0, 1, 1]], SIZE))])["mean_IoU"] == 0


def test_unions_count_a_pixel_once():
    masks = np.zeros((2, *SIZE), bool)
    masks[0, :10, :10] = masks[1, 5:10, :10] = True
    both = union_of_boxes([[0, 0, 9, 9], [0, 5, 9, 9], [-5, 0, 3, 3]], SIZE)
    assert region_iou([(union_of_masks(masks, SIZE), both)])["mean_IoU"] == 1
    outside = union_of_boxes([[-9, 2, -1, 5], [2, -9, 5, -1], [30, 2, 40, 5], [0, 0, 9, 9]], SIZE)
    assert region_iou([(union_of_masks(masks, SIZE), outside)])["mean_IoU"] == 1
    assert not coco_mask.area(union_of_masks(masks[:0], SIZE))
    assert union_of_runs([encode_mask(mask) for mask in masks], SIZE) == union_of_masks(masks, SIZE)
    assert union_of_runs([], SIZE) == union_of_masks(masks[:0], SIZE)
