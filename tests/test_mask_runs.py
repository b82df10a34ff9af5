"""Masks from end to end: the head alone on a trained model, then results, pictures, scores and `Detector.masks`."""
import dataclasses
import json

import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from glipv2_jax import train
from glipv2_jax.build import abstract_params, build
from glipv2_jax.checkpoint import Checkpoints, load_params
from glipv2_jax.evaluation.parts import Found
from glipv2_jax.evaluation.protocols import PROTOCOLS
from glipv2_jax.models.glipv2 import init_params
from glipv2_jax.predict import Detector
from glipv2_jax.train_state import TrainState
from input_pipeline.masks import decode_mask, encode_mask
from input_pipeline.scenes import Scenes
from tests.test_models import MASK_HEAD
from tests.test_train import small_config


def mask_config():
    """Two steps of the mask head alone, on the detection half of the small run."""
    config = small_config()
    config.data.train, config.data.eval = config.data.train[:1], config.data.eval[:1]
    config.model.overrides = config.model.overrides.to_dict() | {"mask_head": MASK_HEAD}
    config.data.mask_size, config.loss.mask_boxes = 8, 6
    config.train.tune, config.train.num_steps, config.train.ema_decay = "masks", 2, 0.0
    config.train.checkpoint_every_steps = 0
    return config


def _params(config, workdir):
    mesh, _, model = build(config)
    return load_params(workdir, abstract_params(mesh, model, config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(config, workdir of a model without masks, workdir of the run that gave it a mask head, scores)."""
    before, workdir = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("run")
    plain = small_config()
    model = build(plain)[2]
    checkpoints = Checkpoints(before)
    checkpoints.save(TrainState(np.int32(0), jax.jit(lambda: init_params(model, jax.random.key(5)))(), (), None, np.float32(0)),
                     json.loads(plain.to_json_best_effort()), dataclasses.asdict(model.config))
    checkpoints.close()
    config = mask_config()
    config.init_from = str(before)
    return config, before, workdir, train.train_and_evaluate(config, workdir)


def test_the_first_step_trains_the_mask_head_and_nothing_else(finished):
    config, before, workdir, _ = finished
    trained, start = _params(config, workdir), _params(small_config(), before)
    mask_head = trained.pop("mask_head")
    jax.tree.map(np.testing.assert_array_equal, trained, start)
    mesh, _, model = build(config)
    fresh = init_params(model, jax.random.key(config.seed))["mask_head"]
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(mask_head), jax.tree.leaves(fresh)) if a.size > 16)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss_mask"]) and line["count_mask"] > 0 for line in lines[:2])


def test_results_hold_run_lengths_of_the_files_own_pixels_and_are_scored(finished):
    _, _, workdir, scores = finished
    rows = json.loads((workdir / "detections.json").read_text())
    assert rows and all(row["segmentation"]["size"] == [64, 64] for row in rows)
    assert any(coco_mask.area(row["segmentation"]) for row in rows)
    assert {"heldout/AP", "heldout/mask_AP", "heldout/mask_AP50", "heldout/mask_heldout_AP50"} <= set(scores)
    assert "mask_: segm AP" in json.loads((workdir / "protocol.json").read_text())["metric"]
    assert (workdir / "pictures.jpg").exists()


def test_a_detector_pastes_its_masks_into_the_photograph(finished):
    _, _, workdir, _ = finished
    detector = Detector.from_pretrained(workdir)
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    found = detector.detect([image], ["red star", "blue circle"], threshold=0)[0]
    assert len(found) and found.masks.shape == (len(found), 90, 130)
    everything = np.asarray(found.masks)
    assert everything.dtype == bool and everything.any()
    for mask, (x1, y1, x2, y2) in zip(found.masks, found.boxes):
        inside = np.zeros((90, 130), bool)
        inside[max(int(y1) - 2, 0):int(y2) + 3, max(int(x1) - 2, 0):int(x2) + 3] = True
        assert not (mask & ~inside).any()
    row = found.to_coco(1)[0]
    np.testing.assert_array_equal(decode_mask(row["segmentation"], None, (90, 130)), everything[0])
    assert found.to_odvg("a.jpg")["detection"]["instances"][0]["segmentation"] == row["segmentation"]
    assert len(found.above(found.scores[0] - 1e-6).masks) == len(found.above(found.scores[0] - 1e-6)) >= 1
    assert np.any(np.asarray(found.draw()) != np.asarray(dataclasses.replace(found, masks=None).draw()))
    assert detector.ground(image, "a red star", threshold=0).masks.shape[1:] == (90, 130)
    assert detector.detect([image], [])[0].masks.shape == (0, 90, 130)


def test_several_views_and_masks_exclude_each_other(finished):
    config, _, workdir, _ = finished
    config = config.copy_and_resolve_references()
    config.eval.views = ((64, 64), (64, 64, True))
    with pytest.raises(ValueError, match="eval.views: found 2 views .* expected eval.masks=False"):
        train.evaluate_only(config, workdir)


def test_what_masks_need_is_asked_for_before_the_run(tmp_path):
    config = mask_config()
    config.data.mask_size = 0
    with pytest.raises(ValueError, match="data.mask_size 0, expected more than 0"):
        train.train_and_evaluate(config, tmp_path)
    config = mask_config()
    config.model.overrides = small_config().model.overrides
    with pytest.raises(ValueError, match="found no mask head"):
        train.train_and_evaluate(config, tmp_path)


def test_true_masks_score_one_and_boxes_in_their_place_less():
    source = Scenes(seed=0, num_examples=4, split="test", task="detection", canvas=(64, 64), max_objects=3)
    protocol, settings = PROTOCOLS["coco"], small_config().eval

    def found(masks_of):
        for index in range(len(source)):
            record = source[index]
            count = len(record["boxes"])
            yield Found(index, index, (1.0, 1.0), record["boxes"], np.ones(count, np.float32), record["classes"],
                        [encode_mask(mask) for mask in masks_of(record)])

    def filled(record):
        masks = np.zeros_like(record["masks"])
        for mask, (x1, y1, x2, y2) in zip(masks, record["boxes"].astype(int)):
            mask[y1:y2 + 1, x1:x2 + 1] = True
        return masks
    true, boxes = (
        protocol.score(protocol.truth(source), protocol.predictions(source, list(found(masks_of)), settings), settings)
        for masks_of in (lambda record: record["masks"], filled))
    assert true["AP"] == boxes["AP"] == pytest.approx(1) and true["mask_AP"] == pytest.approx(1) and boxes["mask_AP"] < 0.8
    # A result file of masks alone, as the benchmark's servers also take it.
    rows = [{key: value for key, value in row.items() if key != "bbox"}
            for row in protocol.predictions(source, list(found(filled)), settings)]
    assert protocol.score(protocol.truth(source), rows, settings)["mask_AP"] == pytest.approx(boxes["mask_AP"])
