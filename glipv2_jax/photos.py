"""`glipv2 detect`, `ground`, `answer`, `describe`: photographs in, pictures with boxes and a JSON file beside each out."""
import argparse
import glob
import json
import os
import pathlib
import sys
import time

from glipv2_jax.files import write_whole
from glipv2_jax.metrics import Progress

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
EXAMPLE_CLASSES = 12


def detect():
    """`glipv2 detect PHOTO… "a cat. a dog."`: boxes of the named classes. Exits with an error for bad arguments."""
    args = _parser("detect", "the class names, with a full stop between two: \"a cat. a dog.\"").parse_args()
    if args.example:
        scene, names = example_scene()
        args.inputs = args.inputs or [". ".join(names)]
        photos = {"example": scene}
    else:
        photos = _photos_before(args, "class names, \"a cat. a dog.\"")
    names = [name.strip() for name in args.inputs[-1].split(".") if name.strip()]
    if not names:
        sys.exit(f"glipv2 detect: no class names in {args.inputs[-1]!r}; expected \"a cat. a dog.\"")
    if len(names) == 1 and "," in names[0]:
        print(f"glipv2 detect: {names[0]!r} is one class; a full stop stands between two: \"a cat. a dog.\"", file=sys.stderr)
    _run(args, photos, lambda detector, pixels: detector.detect(
        [pixels], names, threshold=args.threshold, orders=args.orders)[0])


def ground():
    """`glipv2 ground PHOTO… "a cat on a red chair"`: boxes of the caption's phrases, coloured like its words."""
    args = _parser("ground", "the caption; its noun phrases are found, or name them with --phrases").parse_args()
    if args.example:
        photo, caption = example_caption()
        args.inputs, photos = args.inputs or [caption], {"example": photo}
    else:
        photos = _photos_before(args, "a caption, \"a cat on a red chair\"")
    caption, phrases = args.inputs[-1], args.phrases
    _run(args, photos, lambda detector, pixels: detector.ground(pixels, caption, phrases, threshold=args.threshold))


def answer():
    """`glipv2 answer PHOTO… "how many cats are there?"`: answers, and boxes of the question's words."""
    args = _parser("answer", "the question: \"how many cats are there?\"").parse_args()
    if args.example:
        photo, question = example_scene()[0], "how many objects are there?"
        args.inputs, photos = args.inputs or [question], {"example": photo}
    else:
        photos = _photos_before(args, "a question, \"how many cats are there?\"")
    question = args.inputs[-1]
    _run(args, photos, lambda detector, pixels: detector.answer(pixels, question, args.top, threshold=args.threshold),
         lambda found: ", ".join(f"{answer} {share:.2f}" for answer, share in zip(found.answers, found.probabilities)))


def describe():
    """`glipv2 describe PHOTO…`: a caption, and boxes of its phrases."""
    args = _parser("describe", "").parse_args()
    photos = {"example": example_scene()[0]} if args.example else _photos(args.inputs)
    _run(args, photos, lambda detector, pixels: detector.describe(
        pixels, beams=args.beams, max_words=args.max_words, length_penalty=args.length_penalty, threshold=args.threshold),
         lambda found: found.caption)


def _parser(command, text):
    parser = argparse.ArgumentParser(
        f"glipv2 {command}", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Photographs may be files, folders and patterns such as 'holiday/*.jpg'.")
    parser.add_argument("inputs", nargs="*", metavar="PHOTO", help=f"photographs, and last {text}" if text else "photographs")
    parser.add_argument("--checkpoint", help="folder that training or `glipv2 convert` wrote; by default the small "
                        "weights of the package, which know rendered shapes")
    parser.add_argument("--output", default=f"found/{command}", help="folder of the pictures and JSON files; made when missing")
    parser.add_argument("--threshold", type=_share, default=0.5, help="least score of a box, 0 to 1")
    parser.add_argument("--overlaps", action="store_true", help="also boxes that cover a better one of another name")
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of computation")
    parser.add_argument("--example", action="store_true", help="a rendered scene instead of photographs")
    if command == "detect":
        parser.add_argument("--orders", type=_count, default=1, help="average over so many orders of the class names")
    elif command == "ground":
        parser.add_argument("--phrases", nargs="+", help="the phrases of the caption to find")
    elif command == "answer":
        parser.add_argument("--top", type=_count, default=5, help="answers to tell")
    else:
        parser.add_argument("--beams", type=_count, default=5, help="texts that are followed at a time; 1: the likeliest word each time")
        parser.add_argument("--max_words", type=_count, default=20, help="tokens of a caption, at most")
        parser.add_argument("--length_penalty", type=float, default=1.0, help="p: captions compete by log-probability / words^p")
    return parser


def _count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 1")
    return int(text)


def _share(text):
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 0 to 1")
    return value


def _photos_before(args, text):
    """The photographs in front of the text, which is the last argument. Exits where it is missing, blank, or one more photograph."""
    last = args.inputs[-1] if args.inputs else ""
    if len(args.inputs) < 2 or not last.strip() or last.lower().endswith(SUFFIXES) and os.path.exists(last):
        found = f"{last!r} as the last of {len(args.inputs)} arguments" if args.inputs else "no argument"
        sys.exit(f"glipv2: found {found}, expected photographs and behind them {text}; or --example")
    return _photos(args.inputs[:-1], ". The last argument is the text")


def _photos(patterns, hint=""):
    """Name → path of every photograph; names are unique. Exits where a pattern finds nothing; `hint` is said then."""
    found = []
    for pattern in patterns:
        path = pathlib.Path(pattern)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        else:
            inside = [path] if path.exists() else sorted(map(pathlib.Path, glob.glob(pattern, recursive=True)))
        if not inside:
            sys.exit(f"glipv2: {pattern}: found no photograph; expected a file, a folder with {', '.join(SUFFIXES)}, or a pattern{hint}")
        found += inside
    if not found:
        sys.exit("glipv2: found no photograph; expected some, or --example")
    photos = {}
    for path in dict.fromkeys(found):
        name, count = path.stem, 1
        while name in photos:                       # a.jpg and a.png, or two folders
            count += 1
            name = f"{path.stem}_{count}"
        photos[name] = path
    return photos


def _run(args, photos, find, tell=None):
    """find: (detector, photograph) → Detections or Answer. tell: what it says beside its boxes."""
    _check_output(pathlib.Path(args.output), photos)
    from glipv2_jax.main import set_up_compilation_cache, set_up_logging
    set_up_logging()
    set_up_compilation_cache()
    from glipv2_jax.predict import Detector  # late: JAX takes a second, wrong arguments should not
    from input_pipeline import image_ops
    try:
        detector = Detector.from_pretrained(args.checkpoint, ema=args.ema, dtype=args.dtype)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"glipv2: {error}")
    output = pathlib.Path(args.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"glipv2: --output={output}: expected a folder, or one that can be made: {error.strerror}")
    print("Compiling for the first photograph of each shape: under a minute for a small model on a CPU, a few for a "
          "large one. The next start finds it on disk.")
    started, first, failures = time.perf_counter(), None, []
    with Progress("photographs", total=len(photos), unit="images") as progress:
        for name, photo in photos.items():
            try:
                pixels = image_ops.as_pixels(photo)
            except ValueError as error:
                failures.append(str(error))
            else:
                try:
                    found = find(detector, pixels)
                except ValueError as error:                # of the words or the model: the same for all photographs
                    sys.exit(f"glipv2: {error}")
                found = found if args.overlaps else found.without_overlaps()
                found.draw().save(output / f"{name}.jpg", quality=92)
                record = found.to_odvg(getattr(photo, "name", f"{name}.jpg"))
                write_whole(output / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
                told = f"{tell(found)}; " if tell else ""
                print(f"{output / name}.jpg: {told}{_said(getattr(found, 'found', found))}")
                first = first or time.perf_counter() - started
            progress.advance(1)
    done = len(photos) - len(failures)
    if done:
        rest = time.perf_counter() - started - first
        speed = f", then {(done - 1) / rest:.2f} images/s" if done > 1 else ""
        print(f"{done} picture{'s' * (done > 1)} in {output}; the first after {first:.1f} s{speed}")
    if failures:
        sys.exit("\n".join(["glipv2: not read:", *failures]))


def _check_output(output, photos):
    """Exits where results would lie beside photographs, whose files they could replace, or replace one by a link."""
    paths = [photo for photo in photos.values() if isinstance(photo, pathlib.Path)]
    folders = {path.parent.resolve() for path in paths} | {path.resolve().parent for path in paths}
    inputs = {path.resolve() for path in paths}
    results = [output / f"{name}{suffix}" for name in photos for suffix in (".jpg", ".json")]
    if output.resolve() in folders or inputs & {result.resolve() for result in results}:
        sys.exit(f"glipv2: --output={output}: found a folder of the photographs, whose files the results could replace; expected another")


def _said(found):
    if not found.names:
        return f"no boxes, as no thing is named in {found.caption!r}"
    if not len(found):
        return "nothing above the threshold"
    return ", ".join(f"{phrase} {score:.2f}" for phrase, score in zip(found.phrases, found.scores))


def example_scene():
    """A rendered scene, and class names of which some are in it."""
    from input_pipeline.scenes import Scenes
    world = Scenes(seed=9, num_examples=1, split="test", canvas=(128, 128), max_objects=6)
    record = world[0]
    present = sorted({world.class_names[c] for c in record["classes"]})
    absent = [name for name in world.class_names[::7] if name not in present]
    return record["image"], present + absent[:EXAMPLE_CLASSES - len(present)]


def example_caption():
    """The same scene with a caption of its objects."""
    from input_pipeline.scenes import Scenes
    record = Scenes(seed=9, num_examples=1, split="test", task="caption", canvas=(128, 128), max_objects=6)[0]
    return record["image"], record["caption"]
