"""`glipv2 finetune`: a checkpoint on a data set of your own, few-shot or whole, over several seeds, scored before and after."""
import argparse
import json
import pathlib
import sys

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from glipv2_jax.tuning import MODES
from glipv2_jax.weights import BUILT_IN

_USAGE = """glipv2 finetune --data=FOLDER --output=DIR [--checkpoint=DIR] [--mode=…] [--shots=…] [--config.a.b=value …]
       glipv2 finetune --data=train.json --images=train/ --val=val.json --val_images=val/ --output=DIR …"""


def main(argv=None):
    """Entry point. Exits with a message for data, checkpoints or settings that cannot work."""
    args, fields = _arguments(argv)
    from glipv2_jax.main import set_up_compilation_cache, set_up_logging
    set_up_logging()
    set_up_compilation_cache()
    from glipv2_jax.evaluation.command import config_of  # late: TensorFlow comes with the data
    from glipv2_jax.finetune.recipe import find_data, recipe
    from glipv2_jax.finetune.runs import run
    from input_pipeline.annotations import parse_object
    try:
        seeds = _numbers("seeds", args.seeds)
        if args.shots < 0 or not 0 <= args.rehearsal < 1 or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"found --shots={args.shots} --rehearsal={args.rehearsal:g} --seeds={args.seeds}, expected shots from 0 (all), "
                             "a share from 0 to below 1, and seeds from 0, each once")
        class_names = parse_object(pathlib.Path(args.class_names).read_bytes(), args.class_names) if args.class_names else None
        data = find_data(args.data, args.images, args.val, args.val_images, args.test, args.test_images, class_names)
        checkpoint = args.checkpoint or BUILT_IN
        base = config_of(checkpoint)
        config = recipe(base, data, args.mode, args.shots, _size(args.size), args.rehearsal)
        for field, text in fields:
            replace_field(config, field, text)
        report = run(checkpoint, base, config.lock(), data, args.output, seeds=seeds,
                     heldout=heldout_spec(base, args.heldout, args.heldout_images))
    except (ValueError, OSError) as error:
        sys.exit(f"glipv2 finetune: {error}")
    if jax.process_index() == 0:
        print_report(report)
        print(f"Everything: {pathlib.Path(args.output) / 'report.json'}, curve: {pathlib.Path(args.output) / 'curve.png'}")


def heldout_spec(base, path=None, images=None):
    """The source that forgetting is measured on: a COCO file, else what the checkpoint was scored on first; None: none.

    Raises: ValueError for a file without its folder of images.
    """
    from input_pipeline.registry import eval_specs
    if path == "none":
        return None
    if path:
        if not images:
            raise ValueError(f"--heldout={path}: found no --heldout_images, expected the folder of its images")
        return {"kind": "coco_json", "json_path": str(pathlib.Path(path).absolute()), "bad_boxes": "repair",
                "image_folder": str(pathlib.Path(images).absolute())}
    known = eval_specs(base.data)
    return known[0] if known else None


def replace_field(config, field, text):
    """Sets "a.b.c" of a config to a value written as JSON, or to the text itself.

    Raises: ValueError for a field that is not there, or a value of another type.
    """
    *sections, name = field.split(".")
    where = config
    for section in sections:
        where = where.get(section) if isinstance(where, ConfigDict) else None
    # What a model overrides is open: models/config.py checks it.
    if not isinstance(where, ConfigDict) or (name not in where and sections[:2] != ["model", "overrides"]):
        raise ValueError(f"--config.{field}: no such field, expected one of configs/common.py")
    try:
        value = json.loads(text)
    except ValueError:
        value = {"True": True, "False": False}.get(text, text)
    from glipv2_jax.evaluation.command import tuples  # late: TensorFlow comes with the data
    try:
        with where.unlocked():
            where[name] = tuples(value)
    except TypeError as error:
        raise ValueError(f"--config.{field}: {error}") from error


def print_report(report):
    """Scores in percent: as the checkpoint is, of each seed, and over seeds. The report has all of them."""
    before = report["zero_shot"]
    others = [key for key in before if key.startswith("heldout/")]
    columns = ["val/AP", "test/AP", "test/AP50", *(["heldout/AP50"] if "heldout/AP50" in others else others[:1])]
    shots = f"{report['shots']} shots" if report["shots"] else "all images"
    table = Table("", "best step", *(key.replace("/", " ").replace("heldout", "held-out") for key in columns),
                  title=f"{report['mode']}, {shots}, percent", title_style="")

    def row(name, step, scores):
        table.add_row(name, step, *(f"{100 * scores[key]:.1f}" if key in scores else "" for key in columns))
    row("zero-shot", "", before)
    for found in report["runs"]:
        row(f"seed {found['seed']}", f"{found['best_step']} of {found['steps']}", found["scores"])
    if len(report["runs"]) > 1:
        table.add_section()
        table.add_row("mean ± std", "", *(f"{100 * report['mean'][key]:.1f} ± {100 * report['std'][key]:.1f}"
                                          if key in report["mean"] else "" for key in columns))
    Console().print(table)


def _size(text):
    if text is None:
        return None
    sides = _numbers("size", text)
    if len(sides) > 2 or min(sides) < 32 or sides != sorted(sides):
        raise ValueError(f"--size: found {text!r}, expected the short and the longest side in pixels, such as 800,1333 or 256")
    return sides[0], sides[-1]


def _numbers(name, text):
    try:
        return [int(part) for part in str(text).split(",")]
    except ValueError as error:
        raise ValueError(f"--{name}: found {text!r}, expected whole numbers with commas") from error


def _arguments(argv):
    parser = argparse.ArgumentParser("glipv2 finetune", usage=_USAGE, allow_abbrev=False,
                                     description=__doc__.split(": ", 1)[1],
                                     epilog="--config.a.b=value replaces a field of the run's config, see configs/common.py.")
    parser.add_argument("--checkpoint", help="folder that training or glipv2 convert wrote; else the weights of the package")
    parser.add_argument("--data", required=True, help="folder of a set of ODinW, or a COCO file")
    parser.add_argument("--images", help="of a COCO file: the folder of its images")
    parser.add_argument("--val", help="COCO file that the best state is chosen on")
    parser.add_argument("--val_images", help="the folder of its images")
    parser.add_argument("--test", help="COCO file that is scored before and after; else the set's test split, else val")
    parser.add_argument("--test_images", help="the folder of its images")
    parser.add_argument("--class_names", help="JSON file of better words for classes: {name: text, or an object of prefix, name, "
                        "suffix, synonym, definition}")
    parser.add_argument("--mode", choices=[mode for mode in MODES if mode != "masks"], default="full", help="what trains")
    parser.add_argument("--shots", type=int, default=0, help="images of each class, at least; 0: all")
    parser.add_argument("--seeds", default="3,30,300", help="of the subset and of training; a run each")
    parser.add_argument("--size", help="short and longest side of images, pixels; else the checkpoint's")
    parser.add_argument("--rehearsal", type=float, default=0.0, metavar="SHARE",
                        help="share of the images that come from what the checkpoint was trained on")
    parser.add_argument("--heldout", help="COCO file to measure forgetting on, or none; else what the checkpoint was first scored "
                        "on")
    parser.add_argument("--heldout_images", help="the folder of its images")
    parser.add_argument("--output", required=True, help="folder of runs and report; the same one goes on after a stop")
    args, unknown = parser.parse_known_args(argv)
    fields = []
    for flag in unknown:
        name, equals, value = flag.partition("=")
        if not name.startswith("--config.") or not equals:
            parser.error(f"found {flag!r}, expected --config.a.b=value")
        fields.append((name.removeprefix("--config."), value))
    return args, fields


if __name__ == "__main__":
    main()
