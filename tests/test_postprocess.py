"""Detections are compared as sets: boxes by largest difference over standard deviation, scores absolutely."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.detection import anchors as anchor_grid
from glipv2_jax.detection.postprocess import class_scores, postprocess

BOX_LIMIT, SCORE_LIMIT = 1e-5, 1e-5
jitted = jax.jit(
    postprocess, static_argnames=("level_sizes", "pre_nms_top_n", "max_detections", "aggregation"))
# How the notes of the reference cases call our arguments.
OPTIONS = {"INFERENCE_TH": ("score_threshold", float), "NMS_TH": ("nms_threshold", float),
           "PRE_NMS_TOP_N": ("pre_nms_top_n", int), "DETECTIONS_PER_IMG": ("max_detections", int),
           "SCORE_AGG": ("aggregation", str.lower)}


def head_outputs(arrays, prefix=""):
    """alignment_logits [B, A, T], box_deltas [B, A, 4], centerness [B, A], anchors, level_sizes."""
    levels = sorted({key.rsplit(".", 1)[1] for key in arrays if key.startswith(f"{prefix}bbox_reg.P")})

    def flat(name):
        maps = [arrays[f"{prefix}{name}.{level}"] for level in levels]
        return np.concatenate([m.reshape(*m.shape[:2], -1).transpose(0, 2, 1) for m in maps], axis=1)
    logits = np.concatenate([arrays[f"{prefix}dot_product_logits.{level}"] for level in levels], axis=1)
    shapes = [arrays[f"{prefix}bbox_reg.{level}"].shape[2:] for level in levels]
    return (logits, flat("bbox_reg"), flat("centerness")[..., 0], anchor_grid.anchors(shapes),
            anchor_grid.level_sizes(shapes))


def label_table(positive_map, num_tokens):
    """{"1": [token, ...], ...} to [C, T] bool; labels there count from 1."""
    table = np.zeros((max(map(int, positive_map)), num_tokens), bool)
    for label, tokens in positive_map.items():
        table[int(label) - 1, tokens] = True
    return table


def check_same_set(found, boxes, scores, labels, max_detections, name):
    """One image. A full result is compared above its last score, for which equal ones may compete."""
    mine = {key: np.asarray(value)[np.asarray(found["mask"])] for key, value in found.items()}
    assert len(mine["scores"]) == min(len(scores), max_detections), name
    assert (np.diff(mine["scores"]) <= 0).all()
    floor = mine["scores"][-1] + SCORE_LIMIT if len(mine["scores"]) == max_detections else 0
    ours, theirs = mine["scores"] > floor, scores > floor
    assert ours.sum() == theirs.sum() > 0, name
    unit = boxes.std() * BOX_LIMIT
    apart = np.maximum(
        np.abs(mine["boxes"][ours][:, None] - boxes[theirs]).max(-1) / unit,
        np.abs(mine["scores"][ours][:, None] - scores[theirs]) / SCORE_LIMIT)
    apart = np.where(mine["labels"][ours][:, None] + 1 == labels[theirs], apart, np.inf)
    partner = apart.argmin(1)
    assert len(set(partner)) == len(partner), f"{name}: two detections with one partner"
    assert apart.min(1).max() < 1, f"{name}: {apart.min(1).max()} times the limits apart"


def test_reference_option_sets(load_reference):
    arrays, meta = load_reference("postprocess.npz"), load_reference("postprocess.json")
    logits, box_deltas, centerness, anchors, level_sizes = head_outputs(arrays)
    table = label_table(meta["positive_map"], logits.shape[-1])
    for variant, note in meta["variants"].items():
        options = {OPTIONS[name][0]: OPTIONS[name][1](value)
                   for name, value in re.findall(r"([A-Z_]+) ([\w.]*\w)", note) if name in OPTIONS}
        found = jitted(logits, box_deltas, centerness, anchors, level_sizes, table, arrays["image_sizes_hw"],
                       **options)
        for i in range(len(logits)):
            expected = (arrays[f"{variant}.det.{i}.{key}"] for key in ("boxes", "scores", "labels"))
            check_same_set({key: value[i] for key, value in found.items()}, *expected,
                           found["mask"].shape[1], f"{variant}, image {i}")


def test_reference_model_outputs(load_reference):
    arrays, meta = load_reference("tiny.npz"), load_reference("tiny.json")
    runs = sorted({key.split(".")[0] for key in arrays if re.fullmatch(r"\w+\.det\.\d+\.boxes", key)})
    assert runs
    for run in runs:
        logits, *outputs = head_outputs(arrays, f"{run}.out.")
        table = label_table(meta[run]["positive_map"], logits.shape[-1])
        found = jitted(logits, *outputs, table, arrays["image_sizes_hw"])
        for i in range(len(logits)):
            expected = (arrays[f"{run}.det.{i}.{key}"] for key in ("boxes", "scores", "labels"))
            check_same_set({key: value[i] for key, value in found.items()}, *expected,
                           found["mask"].shape[1], f"run {run}, image {i}")


def small_case(seed=0, num_tokens=6):
    """Two images on a 64×64 canvas of 87 anchors, random outputs."""
    rng = np.random.default_rng(seed)
    shapes = anchor_grid.level_shapes(64, 64)
    anchors, sizes = anchor_grid.anchors(shapes), anchor_grid.level_sizes(shapes)
    logits = rng.normal(-1, 1, (2, len(anchors), num_tokens)).astype(np.float32)
    box_deltas = rng.normal(size=(2, len(anchors), 4)).astype(np.float32)
    return logits, box_deltas, rng.normal(size=(2, len(anchors))).astype(np.float32), anchors, sizes


SIZES = np.array([[64, 50], [40, 64]])
TABLE = np.array([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]], bool)


def test_class_scores_by_hand():
    probabilities = np.array([[0.5, 0.2, 0.8, 0.1, 0.3, 0.9]])
    logits = jnp.asarray(np.log(probabilities / (1 - probabilities)))
    expected = {"mean": [0.5, 0, 0.3], "max": [0.8, 0, 0.3], "power": [0.4, 0, 0.3]}
    for aggregation, scores in expected.items():
        found = class_scores(logits, jnp.asarray(TABLE), aggregation)
        np.testing.assert_allclose(found[0], scores, rtol=1e-5)
    weighted = jnp.asarray([[0, 3, 1, 0, 0, 0.0]])
    np.testing.assert_allclose(class_scores(logits, weighted)[0], [(3 * 0.2 + 0.8) / 4], rtol=1e-5)
    with pytest.raises(ValueError, match="'median'; expected"):
        class_scores(logits, weighted, "median")


def test_class_without_tokens_is_never_detected():
    found = jitted(*small_case(), TABLE, SIZES, score_threshold=0.0)
    assert set(np.asarray(found["labels"])[np.asarray(found["mask"])]) == {0, 2}


def test_fewer_detections_than_room_and_none_at_all():
    found = jitted(*small_case(), TABLE, SIZES, score_threshold=0.0, max_detections=500)
    count = np.asarray(found["mask"].sum(-1))
    assert (count > 0).all() and (count < 87 * 2 + 1).all()
    # What is real comes first, and the rest holds the promised values.
    np.testing.assert_array_equal(found["mask"], np.arange(500) < count[:, None])
    nothing = jitted(*small_case(), TABLE, SIZES, score_threshold=1.0)
    assert not np.asarray(nothing["mask"]).any() and (np.asarray(nothing["labels"]) == -1).all()
    assert not np.asarray(nothing["boxes"]).any() and not np.asarray(nothing["scores"]).any()


def test_a_prompt_per_image_and_clipping_per_image():
    tables = np.stack([TABLE, TABLE[::-1]])
    both = jitted(*small_case(), tables, SIZES)
    for i in range(2):
        alone = jitted(*small_case(), tables[i], SIZES)
        for key in both:
            np.testing.assert_array_equal(both[key][i], alone[key][i], err_msg=key)
        assert np.asarray(both["boxes"][i]).max(0)[2:].tolist() == (SIZES[i, ::-1] - 1).tolist()


def test_half_precision_outputs_give_float32_detections():
    logits, box_deltas, centerness, *grid = small_case()
    half = [jnp.asarray(x, jnp.bfloat16) for x in (logits, box_deltas, centerness)]
    found = jitted(*half, *grid, TABLE, SIZES)
    same = jitted(*(x.astype(jnp.float32) for x in half), *grid, TABLE, SIZES)
    assert found["boxes"].dtype == found["scores"].dtype == jnp.float32
    for key in found:
        np.testing.assert_array_equal(found[key], same[key], err_msg=key)


def test_wrong_level_sizes_are_refused():
    logits, box_deltas, centerness, anchors, _ = small_case()
    with pytest.raises(ValueError, match=f"sum to 3, but there are {len(anchors)} anchors"):
        postprocess(logits, box_deltas, centerness, anchors, (1, 2), TABLE, SIZES)
