"""Seconds per image of GLIP-T and of other open-vocabulary detectors, side by side on one CPU or one GPU.

    python -m benchmarks.detect --sizes=320x480 --batches=1 --classes=1,80 --peers=grounding_dino,owlv2 --repeats=3

From uint8 pixels and class names to boxes, scores and labels: GLIP-T through `Detector`, compiled by XLA (the first
call, which compiles, stands apart) and with its suppression of overlaps; the peers of Hugging Face transformers as they
are in torch, eager (`pip install 'glipv2_jax[benchmark]'`; without torch GLIP-T is measured alone). All weights are
random, as time hardly depends on them; all computation is float32 on the same number of threads. The models take turns,
so that another program on the machine slows all of them. The images of a batch share one list of classes. With `--device=accelerator`
all run on the GPU, with products in TF32 where it has them, and JAX takes memory as it needs it; on a TPU GLIP-T runs alone.

What is equal, and what cannot be:
- Class names are words of BERT's vocabulary, two words in every second name: 1.5 word pieces a name, where COCO's names
  have 1.4. GLIP and GroundingDINO read 256 tokens at a time, so both get at most 100 classes in a prompt, the same
  ones, and run once for each prompt. OWLv2 has CLIP's tokens, here random ids, and no limit to their number.
- GLIP pads images to a multiple of 32; GroundingDINO takes them as they are; OWLv2 pads them to a square, which is at
  most 960 pixels wide, as the released model's is.
- "whole": images and classes that were not seen before. "new classes": features of the images are kept. "new images":
  features of the texts are kept. Deep fusion forbids keeping more of an image than its backbone (and, in GLIP, FPN)
  made, or more of a text than its encoder made: the rest of GLIP and GroundingDINO runs again for each pair, while
  OWLv2 meets its words in the last layer alone. `Detector` keeps texts, and the images of its last batch, by itself; here its images,
  and both for the peers, are kept outside, with one backbone pass for all prompts of an image and one text pass for all its batch.
"""
import argparse
import functools
import os
import platform
import string
import time

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from configs import common
from glipv2_jax.models.config import VARIANTS
from glipv2_jax.models.glipv2 import GLIPv2, init_params
from glipv2_jax.predict import Detector
from glipv2_jax.predictor import PAD_MULTIPLE
from input_pipeline.tokenizer import Tokenizer

CLASSES_PER_PROMPT = 100           # of 1.5 word pieces and a separator each: 252 tokens of 256
PEERS = ("grounding_dino", "owlv2")


class Glip:
    """A variant of this project with random weights, for images of one size."""

    def __init__(self, variant, tokenizer, size):
        model = GLIPv2(VARIANTS[variant])
        params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
        self.input_size = tuple(-(-side // PAD_MULTIPLE) * PAD_MULTIPLE for side in size)
        settings = common.get_config().eval
        settings.canvases, settings.short_side, settings.max_size = (self.input_size,), min(size), max(size)
        self.name, self.prompts_read = variant, prompts_of
        self.detector = Detector(model, params, tokenizer, settings)

    def encode_images(self, pixels):
        """[B, h, w, 3] uint8 → what `detect` needs of them, computed."""
        batch, _ = self.detector._batch(list(pixels), self.input_size)
        return batch, jax.block_until_ready(self.detector._predictor.encode_image(batch))

    def detect(self, pixels, names, kept=None):
        """Detections of named classes; `kept` is `encode_images` of the pixels, done before."""
        if kept is None:
            return self.detector.detect(list(pixels), names, classes_per_prompt=CLASSES_PER_PROMPT,
                                        batch_size=len(pixels))
        batch, levels = kept
        return [self.detector._run(levels, text, batch)
                for text in self.detector._class_prompts(names, CLASSES_PER_PROMPT, 1)]


def prompts_of(names):
    """Lists of names, a prompt each."""
    return [names[start:start + CLASSES_PER_PROMPT] for start in range(0, len(names), CLASSES_PER_PROMPT)]


def class_names(tokenizer, count, rng):
    """Made-up names of one and two words in turns, none twice."""
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    words = [piece for piece in pieces if len(piece) > 2 and set(piece) <= set(string.ascii_lowercase)]
    words = iter(rng.choice(words, count + count // 2, replace=False).tolist())
    return [f"{next(words)} {next(words)}" if place % 2 else next(words) for place in range(count)]


def contenders(variant, peers, tokenizer, size, device):
    """This project's model, and the peers."""
    found = [Glip(variant, tokenizer, size)]
    if peers:
        from benchmarks import peers as torch_models
        makers = {"grounding_dino": lambda: torch_models.GroundingDino(tokenizer, prompts_of, size, device),
                  "owlv2": lambda: torch_models.Owlv2(size, device)}
        found += [makers[peer]() for peer in peers]
    return found


def seconds(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def measure(models, tokenizer, size, batch, classes, repeats):
    """For each model a dict of what was measured → seconds for a batch.

    `whole` and `new classes` and `new images` are medians; `first` is the first whole call.
    """
    rng = np.random.default_rng(0)

    def pixels():
        return rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8)

    def names():
        return class_names(tokenizer, classes, rng)
    times = [{"first": seconds(model.detect, pixels(), names()), "whole": [], "new classes": [], "new images": []}
             for model in models]
    for model in models:                                   # what only kept features take: compiled, too
        images = pixels()
        model.detect(images, names(), model.encode_images(images))
    for _ in range(repeats):
        images, others, known, new = pixels(), pixels(), names(), names()
        for model, of_model in zip(models, times):
            of_model["whole"].append(seconds(model.detect, images, known))
            of_model["new images"].append(seconds(model.detect, others, known))
            of_model["new classes"].append(seconds(model.detect, others, new, model.encode_images(others)))
    return [{key: float(np.median(value)) for key, value in of_model.items()} for of_model in times]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--variant", default="glip_t", choices=sorted(VARIANTS))
    parser.add_argument("--sizes", default="800x1333", help="height x width, several with commas")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--classes", default="1,80,400")
    parser.add_argument("--peers", default=",".join(PEERS), help="of these, with commas; empty: none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "accelerator"))
    args = parser.parse_args(arguments)
    sizes = [tuple(int(side) for side in size.split("x")) for size in args.sizes.split(",")]
    peers = [peer for peer in args.peers.split(",") if peer]
    if not set(peers) <= set(PEERS):
        parser.error(f"--peers: found {args.peers!r}, expected some of {','.join(PEERS)}")
    if args.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")        # before the first call: torch's models need memory, too
    backend, console, threads, torch_version = jax.default_backend(), Console(width=140), len(os.sched_getaffinity(0)), "without peers"
    if backend == "tpu":
        peers = []
    if peers:
        try:
            import torch
            import transformers
            torch.set_num_threads(threads)                 # XLA takes as many as the process may use
            torch_version = f"torch {torch.__version__}, transformers {transformers.__version__}"
            if backend == "gpu":
                torch.set_float32_matmul_precision("high")                 # what XLA does by default
                if not torch.cuda.is_available():
                    console.print("torch sees no GPU, so no peers")
                    peers = []
        except ImportError:
            console.print("no torch, so no peers: pip install 'glipv2_jax[benchmark]'", markup=False)
            peers = []
    console.print(f"jax {jax.__version__}, {torch_version}; {jax.devices()[0].device_kind}, {threads} threads, {platform.machine()}, "
                  f"{time.strftime('%Y-%m-%d')}; float32, random weights, median of {args.repeats}")
    tokenizer = Tokenizer(literal=True)
    for size in sizes:
        models = contenders(args.variant, peers, tokenizer, size, "cuda" if backend == "gpu" else "cpu")
        for batch in (int(batch) for batch in args.batches.split(",")):
            table = Table("classes", "model", "input", "prompts", "whole", "of faster peer", "new classes",
                          "new images", "first call", title=f"{size[0]}x{size[1]}, batch {batch}: seconds per image")
            for classes in (int(classes) for classes in args.classes.split(",")):
                with console.status(f"{size[0]}x{size[1]}, batch {batch}, classes {classes}"):
                    times = measure(models, tokenizer, size, batch, classes, args.repeats)
                fastest = min((found["whole"] for found in times[1:]), default=None)
                for model, found in zip(models, times):
                    table.add_row(
                        str(classes), model.name, "x".join(map(str, model.input_size)),
                        str(len(model.prompts_read([""] * classes))), f"{found['whole'] / batch:.3f}",
                        f"{found['whole'] / fastest:.2f}" if fastest else "-", f"{found['new classes'] / batch:.3f}",
                        f"{found['new images'] / batch:.3f}", f"{found['first']:.1f} s",
                        end_section=model is models[-1])
            console.print(table)


if __name__ == "__main__":
    main()
