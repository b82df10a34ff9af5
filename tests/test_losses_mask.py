"""Boxes in which masks are learned, their targets and loss: cases worked out by hand."""
import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.detection.proposals import best_of_each, match, training_boxes
from glipv2_jax.losses.mask import mask_loss, mask_targets


def test_targets_in_the_true_box_are_the_mask_and_in_its_half_are_half_of_it():
    mask = np.random.default_rng(0).random((8, 8)) > 0.5
    boxes = np.float32([[10, 20, 25, 35]])                            # 16 pixels wide
    proposals = np.float32([[10, 20, 25, 35], [10, 20, 17, 35], [18, 20, 33, 35], [100, 100, 110, 110]])
    targets, valid = mask_targets(mask[None, None], boxes[None], proposals[None], np.zeros((1, 4), int), 8)
    assert valid.all()
    np.testing.assert_array_equal(targets[0, 0], mask)
    np.testing.assert_array_equal(targets[0, 1], np.repeat(mask[:, :4], 2, axis=1))
    np.testing.assert_array_equal(targets[0, 2][:, :4], mask[:, 4:])  # shifted by half: what lies beyond the box is background
    assert not targets[0, 2][:, 4:].any() and not targets[0, 3].any()


def test_a_mask_without_a_pixel_is_unknown_and_costs_nothing():
    masks = np.zeros((1, 2, 4, 4), bool)
    masks[0, 0] = True
    boxes = np.float32([[[0, 0, 9, 9], [20, 20, 29, 29]]])
    targets, valid = mask_targets(masks, boxes, boxes, np.array([[0, 1]]), 4)
    assert valid.tolist() == [[True, False]]
    logits = jnp.zeros((1, 2, 4, 4)).at[0, 1].set(100.0)
    total, count = mask_loss(logits, targets, valid)
    np.testing.assert_allclose([total, count], [16 * np.log(2), 16], rtol=1e-6)


def test_no_box_at_all_costs_nothing():
    total, count = mask_loss(jnp.zeros((2, 0, 4, 4)), jnp.zeros((2, 0, 4, 4), bool), jnp.zeros((2, 0), bool))
    assert (total, count) == (0, 1)


def test_proposals_belong_to_the_box_they_overlap_most():
    boxes, mask = np.float32([[0, 0, 9, 9], [0, 0, 19, 9], [50, 50, 59, 59]]), np.array([True, True, False])
    proposals = np.float32([[0, 0, 9, 9], [0, 0, 14, 9], [0, 0, 15, 9], [50, 50, 59, 59], [0, 0, 3, 9]])
    # IoU of the third with the first two: 100/160 and 160/200; of the second 100/150 and 150/200; the last has 40/100.
    assert match(proposals, boxes, mask).tolist() == [0, 1, 1, -1, -1]
    assert match(proposals, boxes[:0], mask[:0]).tolist() == [-1] * 5


def test_of_an_object_s_anchors_the_best_gives_its_box():
    found = np.arange(16, dtype=np.float32).reshape(4, 4)
    boxes = best_of_each(found, np.float32([0.2, 0.9, 0.3, 1]), np.array([0, 0, 2, -1]), 3)
    np.testing.assert_array_equal(boxes, [found[1], [0] * 4, found[2]])


def test_training_boxes_are_true_ones_and_good_ones_of_the_model():
    boxes, mask = np.float32([[0, 0, 9, 9], [20, 20, 39, 39], [0, 0, 0, 0]]), np.array([True, True, False])
    own = np.float32([[0, 0, 9, 8], [60, 60, 70, 70], [0, 0, 0, 0]])
    chosen, matched = training_boxes(jax.random.key(0), boxes, mask, own, 6)
    rows = {(*box, g) for box, g in zip(map(tuple, np.asarray(chosen).tolist()), matched.tolist()) if g >= 0}
    assert rows == {(0, 0, 9, 9, 0), (20, 20, 39, 39, 1), (0, 0, 9, 8, 0)} and (np.asarray(matched) >= 0).sum() == 3
    draws = {tuple(np.sort(training_boxes(jax.random.key(i), boxes, mask, own, 2)[1]).tolist()) for i in range(20)}
    assert draws <= {(0, 0), (0, 1)} and len(draws) == 2                   # of three usable ones two, by chance
