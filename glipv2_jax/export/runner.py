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

model, photo, text = sys.argv[1:]
with zipfile.ZipFile(model) as files:
    about = json.loads(files.read("about.json"))
    forward = jax.export.deserialize(bytearray(files.read("forward.jax_export")))
    params = dict(np.load(io.BytesIO(files.read("params.npz"))))
    vocabulary = {word: i for i, word in enumerate(files.read("vocab.txt").decode().rstrip("\n").split("\n"))}

image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
canvas = np.zeros((1, *about["canvas"], 3), np.uint8)
scale = min(about["short_side"] / min(image.size), about["max_size"] / max(image.size),
            canvas.shape[1] / image.height, canvas.shape[2] / image.width)
small = np.asarray(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR))
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
        print(f"{names[label]} {score:.2f}", (box / scale).round(1).tolist())
