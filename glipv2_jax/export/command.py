"""`glipv2 export`: a checkpoint as one file for other programs, with a numeric comparison."""
import argparse
import importlib.resources
import importlib.util
import pathlib
import sys

import numpy as np

from glipv2_jax.export import archive, onnx_file
from input_pipeline import image_ops, prompts, text_ops


def main(argv=None):
    """Entry point. Exits with a message for a folder without a checkpoint and for sizes that cannot work.

    Args:
      argv: list of str; None: those of the process.
    """
    from glipv2_jax.main import set_up_logging
    set_up_logging()
    args = _parser().parse_args(argv)
    if args.format == "onnx" and any(importlib.util.find_spec(name) is None for name in ("jax2onnx", "onnxruntime")):
        sys.exit('glipv2 export: ONNX needs jax2onnx and onnxruntime: pip install "glipv2_jax[onnx]"')
    from glipv2_jax.predict import Detector
    try:
        detector = Detector.from_pretrained(args.checkpoint, ema=args.ema)
        canvas, max_tokens = _checked(args, detector)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"glipv2 export: {error}")
    output = pathlib.Path(args.output)
    if args.format == "onnx":
        onnx_file.write(detector, output, canvas, max_tokens)
        said = [onnx_file.compare(detector, output, _example(detector, canvas, max_tokens, 1))]
    else:
        archive.write(detector, output, canvas, max_tokens, args.platforms.split(","))
        said = [archive.compare(detector, output, _example(detector, canvas, max_tokens, batch)) for batch in (1, 2)]
    print("Against the model itself, as ‖a−b‖/‖b‖:", *said, sep="\n  ")
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
    if args.format == "jax":
        runner = output.with_suffix(".py")
        runner.write_bytes((importlib.resources.files(__package__) / "runner.py").read_bytes())
        print(f'Run it where JAX is: python {runner} {output} PHOTO "a cat. a dog."')


def _checked(args, detector):
    """((H, W), T). Raises: ValueError for what cannot work."""
    if detector.class_names is not None:
        raise ValueError(f"{args.checkpoint}: found encoded words in the place of a text encoder, expected a whole checkpoint")
    try:
        canvas = tuple(map(int, args.canvas.split("x"))) if args.canvas else tuple(detector.settings.canvases[0])
        height, width = canvas
    except ValueError:
        raise ValueError(f"--canvas: found {args.canvas!r}, expected HEIGHTxWIDTH, such as 800x1344") from None
    if min(canvas) < 32 or height % 32 or width % 32:
        raise ValueError(f"--canvas: found {height}x{width}, expected multiples of 32")
    max_tokens = args.tokens or detector.max_tokens
    if not 4 <= max_tokens <= detector.max_tokens:
        raise ValueError(f"--tokens: found {max_tokens}, expected 4 to {detector.max_tokens}")
    if pathlib.Path(args.output).suffix == ".py":
        raise ValueError(f"--output: found {args.output}; the runner beside it takes that name")
    written = [pathlib.Path(args.output)]
    if args.format == "jax":
        written.append(written[0].with_suffix(".py"))
    for path in written:
        if path.exists():
            raise ValueError(f"{path}: is there already, expected a new file; name another --output or move it away")
    return canvas, max_tokens


def _example(detector, canvas, max_tokens, batch):
    """Inputs of both kinds of file: the example scene and as many of its class names as fit."""
    from glipv2_jax.photos import example_scene
    scene, names = example_scene()
    settings = detector.settings
    size = image_ops.resized_size(scene.shape[:2], settings.short_side, settings.max_size, canvas)
    image = image_ops.pad(image_ops.resize(scene, np.zeros((0, 4), np.float32), size)[0], canvas)
    (chosen, *_) = prompts.groups_that_fit(names, detector.tokenizer, max_tokens)
    caption, spans = prompts.detection_prompt([names[c] for c in chosen])
    encoding = detector.tokenizer.encode(caption, max_tokens)
    words = np.zeros(archive.input_shapes(batch, canvas, max_tokens)[-1].shape, np.bool_)
    words[:len(spans)] = text_ops.positive_map([[span] for span in spans], encoding.offsets)
    return [*(np.stack([x] * batch) for x in (image, np.int32(size), encoding.ids, encoding.mask)), words]


def _parser():
    parser = argparse.ArgumentParser("glipv2 export", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     description=__doc__.split(": ", 1)[1])
    parser.add_argument("--checkpoint", help="folder that training or `glipv2 convert` wrote; by default the small "
                        "weights of the package")
    parser.add_argument("--output", required=True,
                        help="new file; of the kind jax, a runner of the same name, .py, is put beside it")
    parser.add_argument("--format", default="jax", choices=("jax", "onnx"),
                        help="jax: image and words to detections, any batch size; onnx: to boxes and scores of every "
                        "anchor, one image at a time")
    parser.add_argument("--canvas", default="", help="HEIGHTxWIDTH in pixels; empty: the first of the checkpoint's")
    parser.add_argument("--tokens", type=int, default=0, help="longest prompt; 0: the checkpoint's")
    parser.add_argument("--platforms", default=",".join(archive.PLATFORMS), help="of a file of the kind jax")
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters")
    return parser
