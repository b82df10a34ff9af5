"""Images per second of the training stream on this machine, and where the time of an image goes.

    python -m benchmarks.input --json=train.json --images=train/ --steps=100 --batch=16 --reads=2

Any COCO-format file will do; its images are read once before, so that they come from the page cache. The parts are those
of one thread, under a profiler. With `--torch` the same files go through a torch DataLoader that does what the
reference does with an image (resize, flip, float, normalise, pad), without prompts; torch has to be installed for it.
"""
import argparse
import cProfile
import itertools
import os
import platform
import pstats
import time

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from configs import common
from input_pipeline import image_ops, ops
from input_pipeline.canvases import Order
from input_pipeline.coco_json import CocoJson
from input_pipeline.sources import ClassTable
from input_pipeline.tokenizer import Tokenizer

MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)         # of the reference: BGR, 0 to 255


def parts(read, steps, batch):
    """dict of part → seconds per image, of a function (step, row) -> example."""
    read(0, 0)                                             # what is made only once
    profile = cProfile.Profile()
    for step, row in itertools.product(range(steps), range(batch)):
        profile.runcall(read, step, row)
    times = {}                                             # (file, function) → seconds in it and in what it calls
    for (path, _, function), (_, _, _, seconds, _) in pstats.Stats(profile).stats.items():
        times[os.path.basename(path), function] = seconds / (steps * batch)
    whole, decode = times["pipeline.py", "read"], times["image_ops.py", "pixels_of"]
    resize, show = times["image_ops.py", "resize"], times["image_ops.py", "show"]
    found = {
        "decode": decode,
        "resize": resize,
        "augment": times["ops.py", "augmented_view"] + times["pipeline.py", "_seen"] + show - resize,
        "prompt": times["pipeline.py", "text_of"],
        "assemble": times["pipeline.py", "_assemble"] - show,
    }
    return found | {"order, boxes and checks": whole - sum(found.values()), "whole": whole}


def stream_speed(batches, steps, batch):
    """Images per second, once the stream runs."""
    next(batches)
    started = time.perf_counter()
    for _ in itertools.islice(batches, steps):
        pass
    return steps * batch / (time.perf_counter() - started)


def torch_speed(source, resize, steps, batch, workers):
    """Images per second of a torch DataLoader."""
    try:
        import torch
    except ImportError as error:
        raise SystemExit("--torch: torch is not installed; pip install torch, for this comparison only") from error

    class Photos(torch.utils.data.Dataset):
        def __len__(self):
            return (steps + 1) * batch

        def __getitem__(self, index):
            image = Image.fromarray(image_ops.pixels_of(source[index % len(source)]))
            rng = np.random.default_rng(index)
            height, width = image_ops.resized_size(image.size[::-1], int(rng.choice(resize.short_sides)), resize.max_size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).flip(0).float()
            return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]

    def padded(images):
        height, width = (-(-max(image.shape[axis] for image in images) // 32) * 32 for axis in (1, 2))
        whole = torch.zeros(len(images), 3, height, width)
        for place, image in zip(whole, images):
            place[:, :image.shape[1], :image.shape[2]] = image
        return whole
    loader = torch.utils.data.DataLoader(Photos(), batch_size=batch, num_workers=workers, collate_fn=padded)
    return stream_speed(iter(loader), steps, batch)


def main():
    data = common.get_config().data
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", required=True, help="COCO-format annotation file")
    parser.add_argument("--images", required=True, help="folder of its images")
    parser.add_argument("--augment", default=data.augment)
    parser.add_argument("--steps", type=int, default=100, help="few would be those that are ready before the clock starts")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--reads", type=int, default=data.parallel_reads, help="examples read at a time; torch: workers")
    parser.add_argument("--torch", action="store_true", help="compare with a torch DataLoader")
    args = parser.parse_args()
    source, tokenizer = CocoJson(args.json, args.images, bad_boxes="repair"), Tokenizer()
    resize = next((op for op in ops.parse(args.augment) if isinstance(op, ops.Resize)), None)
    if args.torch and resize is None:
        parser.error("--torch: found no resize in --augment, expected one: the reference resizes")
    cores, console = len(os.sched_getaffinity(0)), Console(width=140)
    console.print(f"{cores} cores, {platform.machine()}, {time.strftime('%Y-%m-%d')}; {len(source)} images of {source.name}; "
                  f"augment {args.augment}; {args.steps} steps of {args.batch}, {args.reads} at a time", markup=False)
    for index in range(min(len(source), args.steps * args.batch)):
        image_ops.pixels_of(source[index])
    speeds = {}
    if args.torch:                                         # before TensorFlow has threads: the workers are forks
        speeds["torch DataLoader, reference's transforms, no prompt"] = torch_speed(
            source, resize, args.steps, args.batch, args.reads)

    from input_pipeline import pipeline
    chain = ops.parse(args.augment)
    options = {"seed": 0, "batch_size": args.batch, "canvases": [tuple(canvas) for canvas in data.canvases],
               "augment": args.augment, "max_tokens": data.max_tokens, "max_boxes": data.max_boxes,
               "num_negatives": data.num_negatives, "class_table": ClassTable.from_sources([source]), "tokenizer": tokenizer}
    times = parts(pipeline.train_reader([source], [1.0], **options), args.steps, args.batch)
    order = Order([source], [1.0], 0, args.batch, options["canvases"], *ops.largest_resize(chain))
    speeds["this stream, whole examples"] = stream_speed(
        pipeline.train_batches([source], [1.0], start_step=0, parallel_reads=args.reads, **options), args.steps, args.batch)

    table = Table("part", "ms per image", "share", title="one thread")
    for part, seconds in times.items():
        table.add_row(part, f"{1000 * seconds:.2f}", f"{seconds / times['whole']:.0%}")
    console.print(table)
    table = Table("stream", "images/s", "images/s per core")
    for name, speed in speeds.items():
        table.add_row(name, f"{speed:.1f}", f"{speed / cores:.1f}")
    console.print(table)
    padding = order.padding([source], resize.short_sides if resize else (0,), ops.largest_resize(chain)[1])
    console.print(f"padding: {padding['canvases']:.0%} of the pixels, on one square canvas {padding['square']:.0%}")


if __name__ == "__main__":
    main()
