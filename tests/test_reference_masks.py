"""Mask head, its loss and its pasted masks against the reference's numbers, in every variant that is stored."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.convert.names import flattened, keys_of, parameters_from_reference, to_reference
from glipv2_jax.detection.masks import PastedMasks
from glipv2_jax.detection.proposals import match
from glipv2_jax.losses.mask import mask_loss, mask_targets
from glipv2_jax.models.config import MaskHeadConfig
from glipv2_jax.models.mask_head import MaskHead
from glipv2_jax.ops.roi_align import pyramid_roi_align
from input_pipeline.masks import decode_mask

# Ten times the measured agreement: float32 against float64 of the same code, over the tensor's standard deviation.
NOISE = 4e-4


class Case:
    """A variant of the stored head: its config, parameters and inputs."""

    def __init__(self, name, meta, arrays, weights):
        about = meta["variants"][name]
        settings = meta["base_overrides"] + about["overrides"]
        settings = dict(zip(settings[::2], settings[1::2]))

        def option(key, default):
            return settings.get(f"MODEL.ROI_MASK_HEAD.{key}", default)
        self.config = MaskHeadConfig(
            kind="hourglass" if option("FEATURE_EXTRACTOR", "").startswith("Hourglass") else "conv",
            num_blocks=len(option("CONV_LAYERS", ())), depth=option("HG_SCALE", 1), dilation=option("DILATION", 1),
            group_norm=option("USE_GN", False), pool_size=option("POOLER_RESOLUTION", 14),
            sampling_ratio=option("POOLER_SAMPLING_RATIO", 0), num_levels=len(option("POOLER_SCALES", ())),
            class_agnostic=not option("PREDICTOR", "").startswith("VL"))
        self.name, self.about, self.head = name, about, MaskHead(self.config)
        self.arrays = {key.removeprefix(f"{name}."): value for key, value in arrays.items() if key.startswith(f"{name}.")}
        self.levels = [arrays[f"fpn.P{i}"].transpose(0, 2, 3, 1) for i in range(3, 3 + self.config.num_levels)]
        self.words, self.boxes = arrays["text.hidden"], arrays["boxes"]
        self.tokens = np.zeros((len(self.boxes), self.words.shape[1]), bool)
        for row, label in zip(self.tokens, arrays["labels"].tolist()):
            row[meta["positive_map"].get(str(label), [])] = True
        state = weights.make_all(about["manifest"], meta["seed"])
        stored = {key: arrays[of_key["stored_as"]] for key, of_key in about["manifest"].items() if "stored_as" in of_key}
        expected = jax.eval_shape(self.head.init, jax.random.key(0), self.levels, self.words, *batched(self.boxes, self.tokens))
        self.params = parameters_from_reference(state | stored, {"mask_head": nn.unbox(expected["params"])})["mask_head"]

    def noise(self, key):
        return 10 * max(self.about["noise_fp32_vs_fp64"][key], 2e-6)

    def stored(self, key, value):
        """Ours and the reference's, as it was stored."""
        if f"{key}.sample" in self.arrays:
            return value.reshape(-1)[::int(self.arrays[f"{key}.step"])], self.arrays[f"{key}.sample"]
        return value, self.arrays[key]

    def check(self, key, value):
        if key in self.arrays or f"{key}.sample" in self.arrays:
            ours, theirs = self.stored(key, np.asarray(value))
            assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < NOISE * theirs.std(), (self.name, key)


def batched(boxes, tokens):
    """boxes [K, 4], tokens [K, T] → boxes, box_mask, tokens of one image."""
    return boxes[None], np.ones((1, len(boxes)), bool), tokens[None]


@pytest.fixture(scope="module")
def fixture(load_reference):
    return load_reference("mask_head.json"), load_reference("mask_head.npz")


@pytest.fixture(scope="module")
def cases(fixture, reference_weights):
    found = [Case(name, *fixture, reference_weights) for name in fixture[0]["variants"]]
    assert found
    return found


def test_every_tensor_equals_the_reference(cases):
    for case in cases:
        inputs = batched(case.boxes, case.tokens)

        @jax.jit
        def forward(params, case=case, inputs=inputs):
            pooled = pyramid_roi_align(case.levels, *inputs[:2], [8, 16, 32, 64, 128][:case.config.num_levels],
                                       case.config.pool_size, case.config.sampling_ratio)
            return pooled, case.head.apply({"params": params}, case.levels, case.words, *inputs, capture_intermediates=True,
                                           mutable=["intermediates"])
        pooled, (logits, seen) = forward(case.params)
        seen = seen["intermediates"]
        case.check("pooled", pooled[0].transpose(0, 3, 1, 2))
        for key, module in (("features", "features"), ("deconv", "upsample")):
            case.check(key, seen[module]["__call__"][0].transpose(0, 3, 1, 2))
        if case.config.class_agnostic:
            case.check("logits", seen["logits"]["__call__"][-1][0].transpose(0, 3, 1, 2))
        assert np.abs(jax.nn.sigmoid(logits[0]) - case.arrays["mask_prob"][:, 0]).max() < case.noise("mask_prob (absolute)")


def test_logits_of_single_tokens_equal_the_reference(cases):
    """Every box once for every token."""
    for case in cases:
        if case.config.class_agnostic:
            continue
        count, length = case.tokens.shape
        inputs = batched(np.repeat(case.boxes, length, axis=0), np.tile(np.eye(length, dtype=bool), (count, 1)))
        logits = jax.jit(lambda p, case=case, inputs=inputs: case.head.apply({"params": p}, case.levels, case.words, *inputs))(
            case.params)
        case.check("logits", np.asarray(logits).reshape(count, length, *logits.shape[2:]))


def test_pasted_masks_equal_the_reference(fixture, cases):
    width, height = fixture[1]["image_size_wh"].tolist()
    for case in cases:
        probabilities = case.arrays["mask_prob"][:, 0]
        found = np.asarray(PastedMasks(probabilities, case.boxes, (height, width)))
        wanted = np.unpackbits(case.arrays["pasted_packed"], axis=-1)[..., :width].astype(bool)
        assert (found != wanted).sum() <= case.about["pixels_within_1e-5_of_threshold"], case.name
        assert np.abs(found.sum((1, 2)) - case.about["pasted_area"]).max() <= case.about["pixels_within_1e-5_of_threshold"]


def test_matches_targets_loss_and_gradients_equal_the_reference(fixture, cases):
    meta, arrays = fixture
    proposals = arrays["train.proposals"][arrays["train.proposal_labels"] > 0]
    gt_boxes, positive_map = arrays["train.gt_boxes"], arrays["train.positive_map"].astype(bool)
    matched = np.asarray(jax.jit(match)(proposals, gt_boxes, np.ones(len(gt_boxes), bool)))
    for case in cases:
        np.testing.assert_array_equal(matched, case.arrays["train.matched_idxs"])
        size = case.config.resolution
        targets = np.zeros((len(proposals), size, size), bool)
        targets[matched >= 0] = [polygon_target(meta["train_polygons"][g], box, size)
                                 for box, g in zip(proposals[matched >= 0], matched[matched >= 0])]
        np.testing.assert_array_equal(targets[matched >= 0], case.arrays["train.mask_targets"])

        def loss(params, levels, words, case=case, targets=targets):
            logits = case.head.apply({"params": params}, levels, words, *batched(proposals, positive_map[matched]))
            total, count = mask_loss(logits, targets[None], (matched >= 0)[None])
            return total / count
        value, (grads, *of_inputs) = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(case.params, case.levels, case.words)
        np.testing.assert_allclose(value, case.arrays["train.loss"], rtol=2e-6, err_msg=case.name)
        found = {f"fpn.P{i}": x.transpose(0, 3, 1, 2) for i, x in enumerate(of_inputs[0], start=3)}
        found["text_hidden"], largest = of_inputs[1], "parameter gradients (over largest entry)"
        for path, gradient in flattened({"mask_head": grads}).items():
            ((key, kind),) = keys_of(path)
            found[key] = to_reference(np.asarray(gradient), kind)
            norm = case.about["grad_norms"][key]
            assert abs(np.linalg.norm(found[key]) - norm) < 2 * case.noise(largest) * norm, key
        stored = {key.removeprefix("train.grad.").removesuffix(".sample") for key in case.arrays
                  if key.startswith("train.grad.")}
        for key in {key for key in stored if not key.endswith(".step")}:
            if case.config.class_agnostic and key == "text_hidden":
                continue
            ours, theirs = case.stored(f"train.grad.{key}", np.asarray(found[key]))
            limit = case.noise(largest) * max(np.abs(theirs).max(), 1e-9)
            assert np.abs(ours - theirs).max() < limit, (case.name, key)


def polygon_target(polygons, box, size):
    """As the reference draws a target: the polygons shifted and scaled to the proposal, and drawn on its grid."""
    scale = size / np.maximum(box[2:] - box[:2], 1)
    moved = [((np.reshape(polygon, (-1, 2)) - box[:2]) * scale).reshape(-1).tolist() for polygon in polygons]
    return decode_mask(moved, box, (size, size))


def test_targets_from_bitmaps_are_those_from_polygons_up_to_their_rim(fixture):
    """The training step's own targets, which start from bitmaps inside the true boxes."""
    meta, arrays = fixture
    proposals = arrays["train.proposals"][arrays["train.proposal_labels"] > 0]
    gt_boxes, size = arrays["train.gt_boxes"], 28
    matched = np.asarray(match(proposals, gt_boxes, np.ones(len(gt_boxes), bool)))
    # A box of the contract is inclusive, and so one wider than what the reference learns on.
    wide = np.float32([0, 0, 1, 1])
    masks = np.stack([polygon_target(polygons, box + wide, 224) for polygons, box in zip(meta["train_polygons"], gt_boxes)])
    targets, valid = jax.jit(functools.partial(mask_targets, size=size))(
        masks[None], gt_boxes[None], (proposals - wide)[None], matched[None])
    np.testing.assert_array_equal(valid[0], matched >= 0)
    for target, box, g in zip(targets[0], proposals, matched):
        if g >= 0:
            wanted = polygon_target(meta["train_polygons"][g], box, size)
            assert (target & wanted).sum() / (target | wanted).sum() > 0.93


def test_two_images_equal_each_alone_and_no_boxes_give_nothing(cases):
    """What the reference cannot do."""
    case = next(case for case in cases if not case.config.class_agnostic)
    levels = [np.concatenate([x, x[:, ::-1]]) for x in case.levels]
    words = np.concatenate([case.words, case.words[:, ::-1]])
    boxes, tokens = np.stack([case.boxes[:3], case.boxes[3:6]]), np.stack([case.tokens[:3], case.tokens[3:6]])
    mask = np.array([[True, True, True], [True, True, False]])

    @jax.jit
    def logits(*inputs):
        return case.head.apply({"params": case.params}, *inputs)
    both = logits(levels, words, boxes, mask, tokens)
    for i in range(2):
        alone = logits([x[i:i + 1] for x in levels], words[i:i + 1], boxes[i:i + 1], mask[i:i + 1], tokens[i:i + 1])
        np.testing.assert_allclose(both[i], alone[0], atol=1e-4)

    def loss(params, boxes, tokens):
        found = case.head.apply({"params": params}, levels, words, boxes, jnp.ones(boxes.shape[:2], bool), tokens)
        total, count = mask_loss(found, jnp.zeros(found.shape, bool), jnp.zeros(found.shape[:2], bool))
        return total / count, found
    for count in (0, 2):                                                # none at all, and padding alone
        (value, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            case.params, np.zeros((2, count, 4), np.float32), np.zeros((2, count, tokens.shape[-1]), bool))
        assert value == 0 and found.shape[:2] == (2, count)
        assert all(np.isfinite(x).all() and not np.any(x) for x in jax.tree.leaves(grads))
