"""Prediction: `Detector`, for people with pictures and words."""
import collections
import hashlib
import logging
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax import encoded_words, sharding
from glipv2_jax.checkpoint import load_params, read_about
from glipv2_jax.detection.anchors import anchors, level_shapes
from glipv2_jax.detection.boxes import iou_matrix
from glipv2_jax.detection.masks import PastedMasks
from glipv2_jax.detections import Answer, Detections
from glipv2_jax.models.config import config_from_dict
from glipv2_jax.models.describe import parameter_shapes
from glipv2_jax.models.glipv2 import GLIPv2
from glipv2_jax.phrases import noun_phrases
from glipv2_jax.predictor import PAD_MULTIPLE, Predictor, averaged
from glipv2_jax.weights import BUILT_IN
from input_pipeline import image_ops, prompts, text_ops
from input_pipeline.answers import ANSWERS_FILE, AnswerList
from input_pipeline.tokenizer import Tokenizer

log = logging.getLogger(__name__)

TEXTS_KEPT = 512             # encoded prompts a Detector remembers; one of GLIP-T takes 0.8 MB


class Detector:
    """Finds what words say in images.

        detector = Detector.from_pretrained("weights/glip_t")
        found = detector.detect([image], ["cat", "remote control"])[0]
        found = detector.ground(image, "a cat asleep beside two remote controls")
        answer = detector.answer(image, "how many cats are there?")     # where the model has the head of answers
        found = detector.describe(image)                                # where it has learned to write

    An image is a path, the bytes of a file, a PIL image or an RGB uint8 array. It is resized by the reference's rule
    and laid on the smallest of a few canvases, so that each of them is compiled once. Words are encoded once for each
    prompt and remembered, images as long as no other batch of them is asked about; with deep fusion everything after that depends on
    image and prompt together.

    Args:
      model: GLIPv2 module. params: its parameters. tokenizer: input_pipeline Tokenizer, literal: users may type anything.
      settings: `config.eval`. max_tokens: longest prompt.
      answers: AnswerList of a model that answers questions.
    Attributes:
      class_names: of a checkpoint without text encoder, the one list that it knows, see `encoded_words`; else None.
    """

    def __init__(self, model, params, tokenizer, settings, max_tokens=256, answers=None):
        self.class_names = None
        self.model, self.tokenizer, self.max_tokens, self.answers = model, tokenizer, max_tokens, answers
        self.settings = settings
        # One device: a program that shares a machine should not take all of it, and batches here are small.
        mesh = sharding.make_mesh(1, devices=jax.devices()[:1])
        self._predictor = Predictor(model, mesh, settings)
        self._predictor.params = jax.device_put(params, sharding.replicated(mesh))
        self._mask_side = model.config.mask_head.resolution if self._predictor.with_masks else None
        self._text, self._image = collections.OrderedDict(), (None, None)
        # A short prompt need not pay for a long one's tokens. The 80 names of COCO have 195; fusion's kernel for TPUs takes multiples of 128.
        lengths = (128,) if jax.default_backend() == "tpu" else (64, 128, 208)
        self._lengths = sorted({min(n, max_tokens) for n in (*lengths, max_tokens)})

    @property
    def params(self):
        """The parameters, as they lie on the device."""
        return self._predictor.params

    @property
    def can_answer(self):
        """Whether there are a head of answers and their list."""
        return bool(self.model.config.num_answers and self.answers)

    @property
    def can_describe(self):
        """Whether there are a text encoder and a head of words, which see the image. What it writes is worth what it was trained to write."""
        return self.model.config.can_write and self.class_names is None

    @classmethod
    def from_pretrained(cls, directory=None, *, ema=False, dtype="float32"):
        """A detector from a folder that training or `glipv2 convert` wrote: weights, model, words and image sizes.

        Args:
          directory: path; None: the small weights of the package, which know rendered shapes.
          ema: take the averaged parameters.
          dtype: of computation, "float32" or "bfloat16"; parameters stay float32.
        Raises: FileNotFoundError without a checkpoint; ValueError if it does not fit its own description.
        """
        from ml_collections import ConfigDict
        directory = pathlib.Path(directory or BUILT_IN)
        about = read_about(directory)
        config = config_from_dict(about["model"])
        settings, data = ConfigDict(about["config"]["eval"]), about["config"]["data"]
        vocabulary = directory / "vocab.txt"
        tokenizer = Tokenizer(vocabulary if vocabulary.exists() else data["vocabulary"] or None, literal=True)
        if tokenizer.vocab_size != config.text_encoder.vocab_size:
            raise ValueError(f"{directory}: found {tokenizer.vocab_size} words in the vocabulary, expected the "
                             f"{config.text_encoder.vocab_size} of the text encoder; put its vocab.txt beside the checkpoint")
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                                parameter_shapes(config))
        answers = AnswerList.read(directory / ANSWERS_FILE) if (directory / ANSWERS_FILE).exists() else None
        if answers and len(answers) != config.num_answers:
            raise ValueError(f"{directory / ANSWERS_FILE}: found {len(answers)} answers, expected the {config.num_answers} of the model")
        kept = encoded_words.read(directory)
        if kept:
            abstract = {part: tree for part, tree in abstract.items() if part not in encoded_words.REPLACED}
        detector = cls(GLIPv2(config, jnp.dtype(dtype)), load_params(directory, abstract, ema=ema), tokenizer, settings,
                       data["max_tokens"], answers)
        if kept:
            detector.class_names = kept[0]
            detector._text.update({(caption, words.shape[1]): jnp.asarray(words, dtype) for caption, words in kept[1].items()})
        return detector

    def detect(self, images, class_names, *, threshold=0.5, classes_per_prompt=None, max_detections=100, orders=1,
               batch_size=1, exact_canvas=False):
        """Objects of the named classes in every image.

        Any number of classes: they are cut into as many prompts as their tokens need. A name equal to an earlier one
        but for case never appears as a label, the earlier one does; so does a name without a letter. With no class
        at all nothing is found.

        Args:
          images: list of images, of any sizes.
          class_names: list of str for all images, or a list of such lists, one for each image.
          threshold: least score, which is the square root of class probability × centerness. Pairs with a class
            probability below `settings.score_threshold` are never found.
          classes_per_prompt: most classes in one prompt; None: as many as fit.
          max_detections: most of an image, over all its prompts.
          orders: average over that many orders of the names within their prompt. The text encoder reads positions,
            so a name's score depends a little on its place in the list.
          batch_size: images of the same canvas and classes that run together.
          exact_canvas: True pads all images of the call as the reference pads a batch, to the largest of them and a
            multiple of 32, instead of each to one of the detector's canvases; (height, width) is a canvas of your
            own. Every new size is compiled.
        Returns: list of Detections, as the images.
        Raises: ValueError for a broken image or arguments that do not fit each other.
        """
        if isinstance(images, (str, bytes)) or not hasattr(images, "__len__") or getattr(images, "ndim", 4) != 4:
            raise ValueError("images: found a single image, expected a list of images")
        if isinstance(class_names, str):
            raise ValueError(f"class_names: found the text {class_names!r}, expected a list of names")
        class_names = list(class_names)
        per_image = [tuple(class_names)] * len(images)
        if class_names and not isinstance(class_names[0], str):
            per_image = [tuple(names) for names in class_names]
            if len(per_image) != len(images):
                raise ValueError(f"class_names: found {len(per_image)} lists for {len(images)} images")
        if orders < 1 or batch_size < 1 or max_detections < 1:
            raise ValueError(f"orders {orders}, batch_size {batch_size}, max_detections {max_detections}: expected at least 1")
        _check_threshold(threshold)

        pixels = [image_ops.as_pixels(image, name=f"images[{i}]") for i, image in enumerate(images)]
        canvases = self._canvases(pixels, exact_canvas)
        groups = {}
        for index, key in enumerate(zip(per_image, canvases)):
            groups.setdefault(key, []).append(index)
        found = [None] * len(images)
        for (names, canvas), indices in groups.items():
            texts = self._class_prompts(names, classes_per_prompt, orders)
            for chosen in _batches(indices, batch_size):
                batch, scales = self._batch([pixels[i] for i in chosen], canvas)
                levels = self._levels(batch) if texts else None
                rows = [self._run(levels, text, batch) for text in texts]
                for place, index in enumerate(chosen):
                    found[index] = _merged([_row(part, place) for part in rows], scales[place], pixels[index], names,
                                           threshold, max_detections, mask_side=self._mask_side)
        return found

    def ground(self, image, caption, phrases=None, *, threshold=0.5, exact_canvas=False):
        """The objects that a caption's phrases speak of.

        Args:
          image: one image. caption: str.
          phrases: for each phrase its text, of which every occurrence in the caption counts, upper or lower case, or
            a list of (begin, end) characters; None: the caption's noun phrases.
          threshold: least score.
          exact_canvas: as in `detect`.
        Returns: Detections; labels count the phrases. Nothing, if the caption has no phrase.
        Raises: ValueError for a phrase that the caption does not hold, or a broken image.
        """
        if not isinstance(caption, str):
            raise ValueError(f"caption: found {type(caption).__name__}, expected a str")
        _check_threshold(threshold)
        spans, names = _phrases(caption, phrases)
        pixels = image_ops.as_pixels(image)
        if not spans:
            return _merged([], (1.0, 1.0), pixels, names, threshold, 1, caption, (), self._mask_side)
        batch, scales = self._batch([pixels], self._canvases([pixels], exact_canvas)[0])
        return self._grounded(batch, scales[0], pixels, caption, threshold, spans, names)[0]

    def answer(self, image, question, top=5, *, threshold=0.5, exact_canvas=False):
        """Answers to a question, and the objects that its words speak of, from one forward pass.

        Args:
          image: one image. question: str.
          top: how many answers of the model's list, the likeliest first.
          threshold: least score of a box. exact_canvas: as in `detect`.
        Returns: Answer. A list of one answer has one to give, whatever `top`; a question without a noun phrase has no boxes.
        Raises: ValueError for a model without the head or the list of answers; for a question without a word, or with none that the
          vocabulary knows; or for a broken image.
        """
        if not self.model.config.num_answers:
            raise ValueError("this model answers no questions: it has no head of answers (model.num_answers is 0); train one, as "
                             "configs/scenes_understanding.py does")
        if self.answers is None:
            raise ValueError(f"this model has a head of {self.model.config.num_answers} answers, but no list of them; expected "
                             f"{ANSWERS_FILE} beside the checkpoint")
        if not isinstance(question, str) or top < 1:
            raise ValueError(f"question: found {type(question).__name__}, top {top}; expected a str, and at least 1")
        _check_threshold(threshold)
        encoding = self._encoding(question)
        words = encoding.ids[encoding.offsets[:, 1] > encoding.offsets[:, 0]]
        if not any(letter.isalnum() for letter in question) or (words == self.tokenizer.unk_id).all():
            raise ValueError(f"question: found no word that the model knows in {question!r}, expected one such as \"what is this?\"")
        spans, names = _phrases(question)
        pixels = image_ops.as_pixels(image)
        batch, scales = self._batch([pixels], self._canvases([pixels], exact_canvas)[0])
        found, probabilities = self._grounded(batch, scales[0], pixels, question, threshold, spans, names, answers=True)
        best = np.argsort(-probabilities, kind="stable")[:top]
        return Answer(question, tuple(self.answers.names[index] for index in best), probabilities[best], found)

    def describe(self, image, *, beams=5, max_words=20, length_penalty=1.0, threshold=0.5, exact_canvas=False):
        """Writes a caption, and finds the objects that its phrases speak of in a second pass over the same image features.

        Args:
          image: one image.
          beams: texts that are followed at a time; 1 takes the likeliest word each time.
          max_words: tokens of the caption, its end counted, at most. Each value, as each of `beams`, is compiled once.
          length_penalty: p ≥ 0; captions compete by log-probability / words^p, so that at 0 short ones win. Only where there are
            several beams.
          threshold: least score of a box. exact_canvas: as in `detect`.
        Returns: Detections with its `caption`, which may be empty; labels count its noun phrases.
        Raises: ValueError for a model that cannot write, or a broken image.
        """
        limit = min(self.max_tokens, self.model.config.text_encoder.max_positions) - 1
        if not self.can_describe:
            raise ValueError("this model writes no captions: it has no head of words (model.mlm_head is off) or no fusion; train one, "
                             "as configs/scenes_understanding.py does")
        for name, value, least, most in (("beams", beams, 1, math.inf), ("max_words", max_words, 1, limit),
                                         ("length_penalty", length_penalty, 0, math.inf)):
            if not least <= value <= most:
                raise ValueError(f"{name}: found {value}, expected {least} or more" + (f", at most {most}" if most < math.inf else ""))
        _check_threshold(threshold)
        pixels = image_ops.as_pixels(image)
        batch, scales = self._batch([pixels], self._canvases([pixels], exact_canvas)[0])
        levels = self._levels(batch)
        written = self._predictor.write(levels, self.tokenizer, max_words=max_words, beams=beams, length_penalty=length_penalty)
        caption = self.tokenizer.text(np.asarray(written.token_ids[0]))
        return self._grounded(batch, scales[0], pixels, caption, threshold, *_phrases(caption))[0]

    def _grounded(self, batch, scale, pixels, text, threshold, spans, names, *, answers=False):
        """(Detections of the phrases of a text, probability of each answer [N] where asked for, else None)."""
        encoding, probabilities, rows = self._encoding(text), None, []
        if encoding.num_tokens > self.max_tokens:
            log.warning("text of %d tokens: what follows token %d is not read", encoding.num_tokens, self.max_tokens)
        tokens = _padded_rows(text_ops.positive_map(spans, encoding.offsets))
        if spans or answers:
            levels = self._levels(batch)
            predict = self._predictor.answer if answers else self._predictor.predict
            raw = predict(levels, self._words(text, encoding), encoding.mask[None])
            if answers:
                probabilities, raw = np.asarray(raw[0][0]), raw[1]
            rows = [_row(self._predictor.decode(raw, tokens, batch), 0)] if spans else []
        found = _merged(rows, scale, pixels, names, threshold, self.settings.max_detections, text,
                        tuple(tuple(of_phrase) for of_phrase in spans), self._mask_side)
        return found, probabilities

    def embed_text(self, texts):
        """Unit vectors of texts, for retrieval: the mean of their words' un-fused embeddings.

        Args:
          texts: list of str.
        Returns: [N, E] float32.
        Raises: ValueError for a text without words, or a model without the inter-image projections.
        """
        self._check_embeds()
        vectors = []
        for text in texts:
            encoding = self._encoding(text)
            words = encoding.offsets[:, 1] > encoding.offsets[:, 0]
            if not words.any():
                raise ValueError(f"texts: {text!r} has no words")
            dummy = [jnp.zeros((1, 1, 1, self.model.config.channels))]
            embedded = np.asarray(self._predictor.embed(dummy, self._words(text, encoding))[1][0])
            mean = embedded[words].mean(0)
            vectors.append(mean / np.linalg.norm(mean))
        return np.stack(vectors) if vectors else np.zeros((0, self.model.config.contrastive_dim), np.float32)

    def embed_regions(self, image, boxes=None):
        """Unit vectors of an image's regions, comparable with `embed_text` by their dot product.

        Args:
          image: one image.
          boxes: [K, 4] `xyxy` in its pixels: each gets the region of the anchor that overlaps it most; None: all.
        Returns: ([K, E] float32, [K, 4] float32 anchors of the regions in the image's pixels).
        Raises: ValueError for a broken image, or a model without the inter-image projections.
        """
        self._check_embeds()
        pixels = image_ops.as_pixels(image)
        batch, scales = self._batch([pixels], self._canvases([pixels])[0])
        dummy = jnp.zeros((1, 1, self.model.config.text_encoder.width))
        regions = np.asarray(self._predictor.embed(self._levels(batch), dummy)[0][0])
        y, x = scales[0]
        places = np.asarray(anchors(level_shapes(*batch["image"].shape[1:3]))) / np.array([x, y, x, y], np.float32)
        if boxes is not None:
            best = np.asarray(iou_matrix(jnp.asarray(boxes, jnp.float32).reshape(-1, 4), places)).argmax(1)
            regions, places = regions[best], places[best]
        return regions, places

    def _check_embeds(self):
        if not self.model.config.contrastive_dim:
            raise ValueError("this model has no inter-image projections (contrastive_dim is 0, as in GLIP v1), so its "
                             "regions and texts cannot be embedded apart from each other")

    def _canvases(self, images, exact=False):
        """The canvas of every image."""
        s = self.settings
        if exact is True:
            sizes = [image_ops.resized_size(image.shape[:2], s.short_side, s.max_size) for image in images]
            exact = tuple(-(-max(sides) // PAD_MULTIPLE) * PAD_MULTIPLE for sides in zip(*sizes))
        if exact:
            return [tuple(exact)] * len(images)
        canvases = [tuple(canvas) for canvas in s.canvases]
        return [tuple(image_ops.smallest_canvas(image.shape[:2], s.short_side, s.max_size, canvases))
                for image in images]

    def _batch(self, images, canvas):
        """Images on a canvas, and for each its (y, x) scale."""
        s = self.settings
        pixels, sizes, scales = [], [], []
        for image in images:
            size = image_ops.resized_size(image.shape[:2], s.short_side, s.max_size, canvas)
            resized, _ = image_ops.resize(image, np.zeros((0, 4), np.float32), size)
            pixels.append(image_ops.pad(resized, canvas))
            sizes.append(size)
            scales.append((size[0] / image.shape[0], size[1] / image.shape[1]))
        return {"image": np.stack(pixels), "image_size": np.array(sizes, np.int32)}, scales

    def _levels(self, batch):
        """Image features. Those of the last batch are kept: what else is asked of its photographs encodes only words."""
        key = (batch["image"].shape, *(hashlib.blake2b(batch[name].tobytes()).digest() for name in ("image", "image_size")))
        known, levels = self._image                        # as a pair: another thread may ask about other photographs
        if known != key:
            levels = self._predictor.encode_image(batch)
            self._image = key, levels
        return levels

    def _encoding(self, text):
        """Tokens of a text, padded to the shortest of a few lengths."""
        count = self.tokenizer.count(text) + prompts.SPECIAL_TOKENS
        return self.tokenizer.encode(text, next((n for n in self._lengths if count <= n), self.max_tokens))

    def _class_prompts(self, names, classes_per_prompt, orders):
        """For each prompt a list over orders of (caption, encoding, tokens of each row [C, T], class of each row)."""
        # A name in brackets alone would vanish in cleaning: it stands as it was given.
        cleaned = [prompts.Phrase(prompts.clean_name(name).strip() or name) for name in names]
        result = []
        for group in prompts.groups_that_fit(cleaned, self.tokenizer, self.max_tokens, classes_per_prompt):
            texts = []
            for order in range(orders):
                rng = np.random.default_rng(order)
                placed = group if order == 0 else rng.permutation(group).tolist()
                caption, spans = prompts.detection_prompt([cleaned[c] for c in placed])
                encoding = self._encoding(caption)
                span_of = dict(zip(placed, spans))
                tokens = text_ops.positive_map([[span_of[c]] for c in group], encoding.offsets)
                texts.append((caption, encoding, _padded_rows(tokens), np.array(group)))
            result.append(texts)
        return result

    def encode_classes(self, class_names):
        """dict of prompt → its encoded words [1, T, D], of a list of class names."""
        return {caption: self._words(caption, encoding)
                for (caption, encoding, _, _), in self._class_prompts(class_names, None, 1)}

    def _words(self, caption, encoding):
        """Encoded words of a text [1, T, D]: remembered, since the same prompt meets many images."""
        key = caption, len(encoding.ids)
        if key not in self._text:
            if self.class_names is not None:
                raise ValueError(f"found the text {caption!r}, but this checkpoint has no text encoder: it knows the class list "
                                 f"{self.class_names} alone, whole and in this order")
            self._text[key] = self._predictor.encode_text(encoding.ids[None], encoding.mask[None])
            if len(self._text) > TEXTS_KEPT:
                self._text.popitem(last=False)
        self._text.move_to_end(key)
        return self._text[key]

    def _run(self, levels, orders, batch):
        """Detections of one prompt, averaged over its orders; labels as in `names`."""
        raw = [self._predictor.predict(levels, self._words(caption, encoding), encoding.mask[None])
               for caption, encoding, _, _ in orders]
        token_to_label = np.concatenate([tokens for _, _, tokens, _ in orders], axis=1)
        # A class has as many words in every order.
        found = self._predictor.decode(averaged(raw), token_to_label, batch)
        classes = orders[0][3]
        return found | {"labels": classes[found["labels"].clip(0)]}


def _batches(indices, size):
    """Full batches, and what is left one by one: two shapes to compile, whatever the number of images."""
    full = len(indices) // size * size
    return [indices[i:i + size] for i in range(0, full, size)] + [[i] for i in indices[full:]]


def _padded_rows(tokens):
    """[C, T] → C rounded up to a power of two: prompts of nearly as many classes share a compilation."""
    rows = max(8, 1 << (len(tokens) - 1).bit_length())
    return np.pad(tokens, ((0, rows - len(tokens)), (0, 0)))


def _check_threshold(threshold):
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: found {threshold}, expected a score, 0 to 1")


def _row(found, place):
    return {key: value[place] for key, value in found.items()}


def _merged(parts, scale, image, names, threshold, max_detections, caption=None, spans=None, mask_side=None):
    """One image's detections from all its prompts, in pixels of the image, best first.

    mask_side: pixels of a mask inside its box, where there are masks.
    """
    size = image.shape[:2]
    empty = {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32), "labels": np.zeros(0, int)}
    if mask_side:
        empty["masks"] = np.zeros((0, mask_side, mask_side), np.float32)
    found = {key: np.concatenate([start, *(part[key][part["mask"]] for part in parts)]) for key, start in empty.items()}
    order = np.argsort(-found["scores"], kind="stable")
    order = order[found["scores"][order] > threshold][:max_detections]
    found = {key: value[order] for key, value in found.items()}
    y, x = scale
    boxes = found["boxes"] / np.array([x, y, x, y], np.float32)
    boxes = boxes.clip(0, np.array([size[1] - 1, size[0] - 1] * 2, np.float32))
    masks = PastedMasks(found["masks"], boxes, size) if mask_side else None
    return Detections(boxes, found["scores"], found["labels"], tuple(names), image, caption, spans, masks)


def _phrases(text, phrases=None):
    """(spans of each phrase, its name) of a text: of those that are given, else of its noun phrases."""
    spans = [((begin, end),) for begin, end in noun_phrases(text)] if phrases is None else [
        _occurrences(text, phrase) for phrase in phrases]
    return spans, tuple(" ".join(text[b:e] for b, e in of_phrase) if phrases is None or not isinstance(phrase, str)
                        else phrase for of_phrase, phrase in zip(spans, phrases or spans))


def _occurrences(caption, phrase):
    """Spans of a phrase given as text or as spans. Raises: ValueError where it is not in the caption."""
    if not isinstance(phrase, str):
        spans = [tuple(map(int, span)) for span in phrase]
        if not spans or not all(0 <= begin < end <= len(caption) for begin, end in spans):
            raise ValueError(f"phrases: found spans {spans}, expected some within a caption of {len(caption)} letters")
        return spans
    # Case-insensitive search in the caption itself: lower-casing a text may change its length.
    word = rf"(?<!\w){re.escape(phrase.strip())}(?!\w)"
    spans = [match.span() for match in re.finditer(word, caption, re.IGNORECASE) if phrase.strip()]
    if not spans:
        raise ValueError(f"phrases: {phrase!r} does not occur in the caption {caption!r}")
    return spans
