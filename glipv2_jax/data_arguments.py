"""How commands are told what data is meant: a file or folder, known by its content, or a format with options."""
import json
import pathlib

from input_pipeline.annotations import load_json, parse_object
from input_pipeline.records import CARD
from input_pipeline.registry import KINDS, PATHS


def spec_of(path, images=None):
    """The description of a source, as `registry.make_source` takes it.

    Args:
      path: annotation file, VOC folder, or .yaml of TSV files.
      images: folder of the images, for files that need one.
    Raises: ValueError for what is none of them.
    """
    file = pathlib.Path(path)
    if file.is_dir():
        if (file / CARD).is_file():
            return {"kind": "records", "folder": str(file)}
        if (file / "Annotations").is_dir() and (file / "Sentences").is_dir():
            if images is None:
                raise ValueError(f"{path}: looks like Flickr30k Entities; found no folder of its images, expected --images=FOLDER")
            return {"kind": "flickr_entities", "folder": str(file), "image_folder": str(images)}
        if (file / "Annotations").is_dir():
            return {"kind": "voc", "folder": str(file)}
        raise ValueError(f"{path}: found a folder without Annotations or dataset.json, expected an annotation file, "
                         "a folder of VOC or a prepared one; the folder of images goes to --images")
    if not file.is_file():
        raise ValueError(f"{path}: no such file")
    if file.suffix in (".yaml", ".yml"):
        return {"kind": "tsv", "yaml_path": str(file)}
    kind = _kind_of_lines(file) or _kind(load_json(file), path)
    if images is None:
        raise ValueError(f"{path}: looks like {kind}; found no folder of its images, expected --images=FOLDER")
    return {"kind": kind, ("jsonl_path" if kind in ("odvg", "pairs") else "json_path"): str(file), "image_folder": str(images)}


def _kind_of_lines(file):
    """"odvg" or "pairs" for a file of such lines, else None."""
    with file.open("rb") as lines:
        first = lines.readline()
    try:
        found = parse_object(first, str(file))
    except ValueError:
        return None
    if "detection" in found or "grounding" in found:
        return "odvg"
    return "pairs" if "image" in found and "caption" in found else None


def _kind(content, path):
    content = content if isinstance(content, dict) else {}
    if isinstance(content.get("questions"), list):
        return "vqa"
    annotations = content.get("annotations")
    if not isinstance(annotations, list) or not isinstance(content.get("images"), list):
        raise ValueError(f"{path}: found {sorted(content)[:10] or 'no object'}, expected images and annotations (COCO, "
                         "grounding, captions), questions (VQA), or lines of ODVG or of pairs")
    first = next((entry for entry in annotations if isinstance(entry, dict)), {})
    if "tokens_positive" in first or "tokens" in first:
        return "grounding_json"
    return "coco_captions" if "caption" in first and "bbox" not in first else "coco_json"


def option(flag):
    """--name=value of a reader as (name, value): paths as they are, other values as JSON where they are JSON."""
    name, equals, value = flag.removeprefix("--").partition("=")
    if not flag.startswith("--") or not equals:
        raise ValueError(f"found {flag!r}, expected --option=value")
    if name in PATHS:
        return name, value
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def add_options(parser):
    """Adds --images and --format, which name data beside a file or folder."""
    parser.add_argument("--images", metavar="FOLDER", help="folder of the images, for files that need one")
    parser.add_argument("--format", help=f"reader: {', '.join(KINDS)}; its options follow as --option=value")


def split_options(parser, argv):
    """(arguments of a parser, flags that it does not know: they may be options of a reader).

    argparse alone would take a flag that it does not know for a file if there is a space in its value.
    """
    own = {flag for action in parser._actions for flag in action.option_strings}
    rest = [flag for flag in argv if flag.startswith("--") and flag.partition("=")[0] not in own]
    return parser.parse_args([flag for flag in argv if flag not in rest]), rest


def spec_of_options(data, args, flags):
    """The description of a source that a command line names.

    Args:
      data: file or folder, None where --format says what it is.
      args: of a parser with `add_options`. flags: of the reader.
    Raises: ValueError for data or flags that cannot be understood.
    """
    options = dict(map(option, flags))
    if args.format is None:
        return spec_of(data, args.images) | options
    if args.format not in KINDS:
        raise ValueError(f"--format: found {args.format!r}, expected one of {', '.join(KINDS)}")
    return {"kind": args.format} | ({"image_folder": args.images} if args.images else {}) | options
