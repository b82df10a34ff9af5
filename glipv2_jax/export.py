"""`glipv2 export`: a checkpoint as one file that runs where only JAX is installed.

The file is a zip archive: the forward pass from image and tokens to detections as `jax.export` writes it, for any batch
size and several platforms; the parameters; the vocabulary; and what a caller has to know. Parameters stay outside of
the program, since constants of a gigabyte would be copied with every compilation.
"""
import argparse
import importlib.resources
import io
import json
import pathlib
import sys
import zipfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from glipv2_jax.predict import Detector, decode
from input_pipeline import image_ops, prompts, text_ops

PLATFORMS = ("cpu", "cuda", "tpu")


def main(argv=None):
    """Entry point. Exits with a message for a folder without a checkpoint and for sizes that cannot work."""
    from glipv2_jax.main import set_up_logging
    set_up_logging()
    args = _parser().parse_args(argv)
    try:
        detector = Detector.from_pretrained(args.checkpoint, ema=args.ema)
        canvas = _size(args.canvas) if args.canvas else tuple(detector.settings.canvases[0])
        write(detector, args.output, canvas, args.tokens, args.platforms.split(","))
        print_comparison(detector, args.output)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"glipv2 export: {error}")
    runner = pathlib.Path(args.output).with_suffix(".py")
    runner.write_bytes((importlib.resources.files("glipv2_jax") / "export_runner.py").read_bytes())
    print(f'{args.output}: {pathlib.Path(args.output).stat().st_size / 1e6:.1f} MB. '
          f'Run it: python {runner} {args.output} PHOTO "a cat. a dog."')


def write(detector, path, canvas, max_tokens=0, platforms=PLATFORMS):
    """Writes the archive.

    Its function takes (params, image [b, H, W, 3] uint8, image_size [b, 2] int32, token_ids [b, T] int32, token_mask
    [b, T] bool, token_to_label [C, T] bool) and returns what `detection.postprocess` returns, in pixels of the canvas.
    C is as many classes as T tokens can hold.

    Args:
      detector: Detector. path: new file. canvas: (H, W) pixels. max_tokens: T; 0: the detector's.
      platforms: of "cpu", "cuda", "rocm", "tpu".
    Raises: ValueError for a canvas that is no multiple of 32, or more tokens than the model reads.
    """
    max_tokens = max_tokens or detector.max_tokens
    if min(canvas) < 32 or any(side % 32 for side in canvas):
        raise ValueError(f"canvas: found {canvas[0]}x{canvas[1]}, expected multiples of 32")
    if not 4 <= max_tokens <= detector.max_tokens:
        raise ValueError(f"tokens: found {max_tokens}, expected 4 to {detector.max_tokens}")
    if pathlib.Path(path).suffix == ".py":
        raise ValueError(f"output: found {path}; the runner beside it takes that name, expected another suffix")
    params = traverse_util.flatten_dict(detector.params, sep="/")
    num_classes = max_tokens // 2                              # a word and a separator each
    (batch,) = jax.export.symbolic_shape("b")
    shapes = [((batch, *canvas, 3), jnp.uint8), ((batch, 2), jnp.int32), ((batch, max_tokens), jnp.int32),
              ((batch, max_tokens), jnp.bool_), ((num_classes, max_tokens), jnp.bool_)]
    abstract = [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params),
                *(jax.ShapeDtypeStruct(*shape) for shape in shapes)]
    exported = jax.export.export(jax.jit(_forward(detector)), platforms=tuple(platforms))(*abstract)
    settings = detector.settings
    about = {"canvas": canvas, "tokens": max_tokens, "classes": num_classes, "short_side": settings.short_side,
             "max_size": settings.max_size, "platforms": list(platforms), "jax": jax.__version__,
             "calling_convention_version": exported.calling_convention_version}
    weights = io.BytesIO()
    np.savez(weights, **jax.device_get(params))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("about.json", json.dumps(about, indent=1))
        archive.writestr("forward.jax_export", bytes(exported.serialize()), compress_type=zipfile.ZIP_DEFLATED)
        archive.writestr("vocab.txt", detector.tokenizer.vocabulary.read_bytes(), compress_type=zipfile.ZIP_DEFLATED)
        archive.writestr("params.npz", weights.getbuffer())


def print_comparison(detector, path):
    """Prints how far the archive's detections are from the model's own, on the example scene, alone and twice."""
    from glipv2_jax.photos import example_scene
    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read("about.json"))
        exported = jax.export.deserialize(bytearray(archive.read("forward.jax_export")))
        params = dict(np.load(io.BytesIO(archive.read("params.npz"))))
    scene, names = example_scene()
    size = image_ops.resized_size(scene.shape[:2], about["short_side"], about["max_size"], tuple(about["canvas"]))
    image = image_ops.pad(image_ops.resize(scene, np.zeros((0, 4), np.float32), size)[0], tuple(about["canvas"]))
    (chosen, *_) = prompts.groups_that_fit(names, detector.tokenizer, about["tokens"])
    caption, spans = prompts.detection_prompt([names[c] for c in chosen])
    encoding = detector.tokenizer.encode(caption, about["tokens"])
    words = np.zeros((about["classes"], about["tokens"]), np.bool_)
    words[:len(spans)] = text_ops.positive_map([[span] for span in spans], encoding.offsets)
    for batch in (1, 2):
        inputs = [np.stack([x] * batch) for x in (image, np.int32(size), encoding.ids, encoding.mask)]
        expected = jax.device_get(jax.jit(_forward(detector))(traverse_util.flatten_dict(detector.params, sep="/"), *inputs, words))
        found = jax.device_get(exported.call(params, *inputs, words))
        same = np.array_equal(found["labels"], expected["labels"])
        print(f"batch {batch}: {int(expected['mask'].sum())} detections, "
              f"classes {'equal' if same else 'NOT equal'}, "
              + ", ".join(f"{key} within {_distance(found[key], expected[key]):.1e}" for key in ("boxes", "scores"))
              + " (‖a−b‖/‖b‖)")


def _forward(detector):
    """(params by path, inputs) → detections."""
    def forward(params, image, image_size, token_ids, token_mask, token_to_label):
        outputs = detector.model.apply({"params": traverse_util.unflatten_dict(params, sep="/")}, image, image_size, token_ids, token_mask)
        raw = outputs.alignment_logits, outputs.box_deltas, outputs.centerness
        return decode(detector.settings, raw, token_to_label, image_size, image.shape[1:3])
    return forward


def _distance(found, expected):
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)


def _size(text):
    try:
        height, width = map(int, text.split("x"))
    except ValueError:
        raise ValueError(f"canvas: found {text!r}, expected HEIGHTxWIDTH, such as 800x1344") from None
    return height, width


def _parser():
    from glipv2_jax.photos import DEFAULT_CHECKPOINT
    parser = argparse.ArgumentParser("glipv2 export", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     description=__doc__.split("\n")[0].split(": ", 1)[1])
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT,
                        help="folder that training or `glipv2 convert` wrote")
    parser.add_argument("--output", required=True, help="new file; a runner of the same name, .py, is put beside it")
    parser.add_argument("--canvas", default="", help="HEIGHTxWIDTH in pixels; empty: the first of the checkpoint's")
    parser.add_argument("--tokens", type=int, default=0, help="longest prompt; 0: the checkpoint's")
    parser.add_argument("--platforms", default=",".join(PLATFORMS), help="where the file will run")
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters")
    return parser
