"""The compiled forward pass, from pixels and words to candidates, answers and captions; `predict.Detector` is for people."""
import copy
import functools
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax import decoding, sharding
from glipv2_jax.detection.anchors import STRIDES, anchors, level_shapes, level_sizes
from glipv2_jax.detection.postprocess import postprocess
from glipv2_jax.models import understanding

PAD_MULTIPLE = 32            # the reference pads a batch to a multiple of this

class Raw(NamedTuple):
    """What a model says of a prompt: alignment logits [B, A, T], box deltas [B, A, 4], centerness [B, A]; and with a mask
    head what that reads, see `GLIPv2.segment`."""
    alignment_logits: jax.Array
    box_deltas: jax.Array
    centerness: jax.Array
    mask_inputs: tuple | None = None


def decode(settings, raw, token_to_label, image_size, canvas):
    """`detection.postprocess` with the settings of a run.

    Args:
      settings: `config.eval`. raw: Raw, or its first three.
      token_to_label: [C, T]. image_size: [B, 2]. canvas: (H, W), static.
    Returns: as `postprocess`.
    """
    shapes = level_shapes(*canvas)
    return postprocess(*raw[:3], anchors(shapes), level_sizes(shapes), token_to_label, image_size,
                       score_threshold=settings.score_threshold, pre_nms_top_n=settings.pre_nms_top_n,
                       nms_threshold=settings.nms_threshold, max_detections=settings.max_detections,
                       aggregation=settings.aggregation)


def averaged(raw):
    """Outputs for several wordings of one prompt as one: boxes and centerness are averaged, words stand side by
    side. Masks are those of the first wording.

    Args:
      raw: list of Raw.
    Returns: the same with as many words as all together; a class whose shares of words sum to the same in every wording
      gets the mean of its scores.
    """
    if len(raw) == 1:
        return raw[0]
    alignment, deltas, centerness, mask_inputs = zip(*raw)
    return Raw(jnp.concatenate(alignment, axis=-1), sum(deltas) / len(raw), sum(centerness) / len(raw), mask_inputs[0])


class Predictor:
    """The compiled forward pass, in pieces so that an image is encoded once for all its prompts.

    Args:
      model: GLIPv2 module. mesh: where batches go. settings: `config.eval`.
    Attributes:
      config: ModelConfig.
      params: the parameters to use, as they lie on the mesh; to be set before the first call. Others of the same
        shapes need no new compilation.
    """

    def __init__(self, model, mesh, settings):
        self.params, self.config = None, model.config

        def forward(params, levels, words, token_mask):
            batch = len(levels[0])
            words, token_mask = (jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in (words, token_mask))
            return model.apply({"params": params}, levels, words, token_mask, method="predict")

        def raw_of(outputs):
            return Raw(outputs.alignment_logits, outputs.box_deltas, outputs.centerness, outputs.mask_inputs)

        def predict(*args):
            return raw_of(forward(*args))

        def segment(params, mask_inputs, token_to_label, found):
            words = token_to_label[..., :mask_inputs[1].shape[1]] > 0                # of the first wording
            words = jnp.broadcast_to(words, (len(found["boxes"]), *words.shape[-2:]))
            tokens = jnp.take_along_axis(words, jnp.maximum(found["labels"], 0)[..., None], axis=1)
            boxes, mask, tokens = sharding.constrain_batch((found["boxes"], found["mask"], tokens))
            return jax.nn.sigmoid(model.apply({"params": params}, mask_inputs, boxes, mask, tokens, method="segment"))

        def answer(*args):
            outputs = forward(*args)
            return jax.nn.sigmoid(outputs.answer_logits), raw_of(outputs)

        def write(params, levels, banned, length_penalty, *, start_id, end_id, max_words, beams):
            apply = functools.partial(model.apply, {"params": params})
            regions = apply(levels, method=understanding.read_image)

            def step(cache, token_ids, position):
                logits, cache = apply(regions, cache, token_ids, position, method=understanding.write_word)
                return jnp.where(banned, jnp.finfo(jnp.float32).min, logits), cache
            batch, ends = len(levels[0]), {"start_id": start_id, "end_id": end_id, "max_words": max_words}
            cache = understanding.empty_cache(model.config, batch * beams, max_words, model.dtype)
            if beams == 1:
                return decoding.greedy_search(step, cache, batch, **ends)
            return decoding.beam_search(step, cache, batch, beams=beams, length_penalty=length_penalty, **ends)

        def embed(params, levels, words):
            return model.apply({"params": params}, levels, words, method="embed")

        def apply(method):
            return jax.jit(lambda params, *args: model.apply({"params": params}, *args, method=method))
        self._encode_image, self._encode_text = apply("encode_image"), apply("encode_text")
        self._predict, self._answer, self._embed = jax.jit(predict), jax.jit(answer), jax.jit(embed)
        self._write = jax.jit(write, static_argnames=("start_id", "end_id", "max_words", "beams"))
        # Replicated results: every process can read all of them.
        self._replicated = sharding.replicated(mesh)
        self._decode, self._candidates = (
            jax.jit(functools.partial(decode, chosen), static_argnames=("canvas",), out_shardings=self._replicated)
            for chosen in (settings, _without_suppression(settings)))
        self._gather = jax.jit(lambda tree: tree, out_shardings=self._replicated)
        # Checkpoints from before there were masks do not have the setting, nor a mask head.
        self.with_masks = bool(model.config.mask_head.kind and settings.get("masks", True))
        self._segment = jax.jit(segment, out_shardings=self._replicated)

    def encode_text(self, token_ids, token_mask):
        """[B, T] ids and mask → [B, T, D] words; B may be 1 for a prompt that all images share."""
        return self._encode_text(self.params, token_ids, token_mask)

    def encode_image(self, batch):
        """Global batch → the five un-fused levels."""
        return self._encode_image(self.params, batch["image"], batch["image_size"])

    def predict(self, levels, words, token_mask):
        """Un-fused features → Raw on the device."""
        return self._predict(self.params, levels, words, token_mask)

    def answer(self, levels, words, token_mask):
        """Un-fused features → (probability of each answer [B, N] float32, what `predict` gives), of one forward pass."""
        return self._answer(self.params, levels, words, token_mask)

    def write(self, levels, tokenizer, *, max_words, beams, length_penalty=1.0):
        """Un-fused features of images → `decoding.Written` on the device, a caption for each; special tokens are never written.

        Raises: ValueError for more words than the text encoder has positions.
        """
        if max_words > self.config.text_encoder.max_positions:
            raise ValueError(f"captions of up to {max_words} words: expected at most the {self.config.text_encoder.max_positions} positions of "
                             "the text encoder")
        banned = np.zeros(tokenizer.vocab_size, bool)
        banned[[tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.mask_id]] = True
        return self._write(self.params, levels, banned, np.float32(length_penalty), start_id=tokenizer.cls_id,
                           end_id=tokenizer.sep_id, max_words=max_words, beams=beams)

    def decode(self, raw, token_to_label, batch, masks=True):
        """What `predict` gave → detections as numpy: boxes [B, K, 4], scores, labels, mask [B, K]; with a mask head, and
        unless `masks` is off, `masks`, the probabilities [B, K, M, M] inside each box."""
        found = jax.device_get(self._decode(raw[:3], token_to_label, batch["image_size"], canvas=batch["image"].shape[1:3]))
        return found | {"masks": self._masks(raw, token_to_label, found)} if masks and self.with_masks else found

    def _masks(self, raw, token_to_label, found):
        """[B, K, M, M] of what was found. Padding, which comes last, is left out by powers of two: few shapes to compile."""
        count = int(found["mask"].sum(1).max())
        rows = min(found["mask"].shape[1], max(8, 1 << max(count - 1, 0).bit_length()))
        masks = jax.device_get(self._segment(self.params, raw.mask_inputs, token_to_label,
                                             {key: value[:, :rows] for key, value in found.items()}))
        return np.pad(masks, ((0, 0), (0, found["mask"].shape[1] - rows), (0, 0), (0, 0)))

    def candidates(self, raw, token_to_label, batch):
        """As `decode`, but all that reaches the suppression of overlaps: what several views of an image are merged from."""
        return jax.device_get(self._candidates(raw[:3], token_to_label, batch["image_size"],
                                               canvas=batch["image"].shape[1:3]))

    def embed(self, levels, words):
        """Un-fused features → unit vectors: (regions [B, A, E], words [B, T, E])."""
        return self._embed(self.params, levels, words)

    def fingerprint(self):
        """16 hexadecimal digits that tell these parameters from others: a hash of sums over all bits of each array, whatever
        the devices that hold it."""
        def mixed(leaf):
            bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).reshape(-1)
            return (bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1)).sum(dtype=jnp.uint32)
        sums = jax.device_get(jax.jit(lambda tree: jax.tree.map(mixed, tree), out_shardings=self._replicated)(self.params))
        leaves = [(jax.tree_util.keystr(path), int(value)) for path, value in jax.tree_util.tree_leaves_with_path(sums)]
        return hashlib.sha256(repr(leaves).encode()).hexdigest()[:16]

    def gather(self, tree):
        """Arrays of a global batch as numpy, on every process."""
        return jax.device_get(self._gather(tree))


def _without_suppression(settings):
    """The settings with which `decode` returns every candidate: no pair of boxes overlaps by more than 1."""
    settings = copy.deepcopy(settings)
    settings.nms_threshold, settings.max_detections = 1.0, len(STRIDES) * settings.pre_nms_top_n
    return settings
