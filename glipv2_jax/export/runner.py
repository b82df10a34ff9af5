"""Runs a model that `glipv2 export` wrote. Needs jax, numpy, pillow and tokenizers; glipv2_jax is not imported.

    python RUNNER MODEL photo.jpg "a cat. a dog."
"""
import io
import json
import sys
import zipfile

import jax.export
import numpy as np
from PIL import Image, ImageOps
from tokenizers import BertWordPieceTokenizer


def shown_size(width, height, short_side, max_size, canvas):
    """Width and height at which the model was trained to see an image: fractions are cut, as in GLIP."""
    short, long = sorted((width, height))
    if long / short * short_side > max_size:
        short_side = max(1, round(max_size * short / long))
    if short != short_side:
        width, height = ((short_side, int(short_side * height / width)) if width < height
                         else (int(short_side * width / height), short_side))
    if height > canvas[0] or width > canvas[1]:
        factor = min(canvas[0] / height, canvas[1] / width)
        width, height = (max(1, min(limit, int(side * factor))) for side, limit in ((width, canvas[1]), (height, canvas[0])))
    return width, height


model, photo, text = sys.argv[1:]
with zipfile.ZipFile(model) as files:
    about = json.loads(files.read("about.json"))
    forward = jax.export.deserialize(bytearray(files.read("forward.jax_export")))
    params = dict(np.load(io.BytesIO(files.read("params.npz"))))
    vocabulary = {word: i for i, word in enumerate(files.read("vocab.txt").decode().rstrip("\n").split("\n"))}

image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
canvas = np.zeros((1, *about["canvas"], 3), np.uint8)
shown = shown_size(*image.size, about["short_side"], about["max_size"], about["canvas"])
scale = np.array([shown[0] / image.width, shown[1] / image.height] * 2)
small = np.asarray(image.resize(shown, Image.Resampling.BILINEAR))
canvas[0, :small.shape[0], :small.shape[1]] = small

names = [name.strip() for name in text.split(".") if name.strip()]
encoding = BertWordPieceTokenizer(vocabulary, lowercase=True).encode(". ".join(names))
tokens, words = np.zeros((2, 1, about["tokens"]), np.int32), np.zeros((about["classes"], about["tokens"]), bool)
if len(encoding.ids) > about["tokens"]:
    sys.exit(f"{len(encoding.ids)} tokens in the names, expected at most {about['tokens']}: ask in several runs")
tokens[:, 0, :len(encoding.ids)] = encoding.ids, encoding.attention_mask
ends = np.cumsum([len(name) + 2 for name in names])          # of each name and its ". "
for place, (begin, end) in enumerate(encoding.offsets):
    label = np.searchsorted(ends, begin, side="right")
    words[label, place] = begin < end and begin < ends[label] - 2
found = forward.call(params, canvas, np.array([small.shape[:2]], np.int32), tokens[0], tokens[1] > 0, words)
for box, score, label, real in zip(*(np.asarray(found[key][0]) for key in ("boxes", "scores", "labels", "mask"))):
    if real and score > 0.5:
        box = (box / scale).clip(0, [image.width - 1, image.height - 1] * 2)
        print(f"{names[label]} {score:.2f}", box.round(1).tolist())
