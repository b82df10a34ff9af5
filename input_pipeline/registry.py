"""From what a config says to sources: one place that knows every kind by name."""
import os


def _scenes(**options):
    from input_pipeline.scenes import Scenes
    return Scenes(**options)


def _stickers(**options):
    from input_pipeline.stickers import Stickers
    return Stickers(**options)


def _coco_json(**options):
    from input_pipeline.coco_json import CocoJson
    return CocoJson(**options)


def _grounding_json(**options):
    from input_pipeline.grounding_json import GroundingJson
    return GroundingJson(**options)


def _voc(**options):
    from input_pipeline.voc import Voc
    return Voc(**options)


def _odvg(**options):
    from input_pipeline.odvg import Odvg
    return Odvg(**options)


# Each imports its reader when asked for: a run pays for the readers that it uses.
KINDS = {"scenes": _scenes, "stickers": _stickers, "coco_json": _coco_json, "grounding_json": _grounding_json,
         "odvg": _odvg, "voc": _voc}
_PATHS = ("folder", "json_path", "jsonl_path", "label_map", "image_folder", "coco_folder")


def make_source(spec, root=""):
    """A source from its description in a config.

    Args:
      spec: dict with `kind`, one of `KINDS`, and the options of that kind. `weight` belongs to the mixture and `name`
        to the report; both are left aside.
      root: what relative paths among the options start from.
    Raises: ValueError for an unknown kind or option.
    """
    options = {k: v for k, v in spec.items() if k not in ("kind", "weight", "name")}
    kind = spec.get("kind")
    if kind not in KINDS:
        raise ValueError(f"config.data: found source kind {kind!r}, expected one of {sorted(KINDS)}")
    options |= {key: os.path.join(root, options[key]) for key in _PATHS if key in options}
    try:
        return KINDS[kind](**options)
    except TypeError as error:
        raise ValueError(f"config.data, source of kind {kind!r}: {error}") from error


def _coco(data, split):
    json_path, image_folder = data[f"{split}_json"], data[f"{split}_images"]
    if not image_folder:
        raise ValueError(f"config.data.{split}_json is {json_path!r}, but config.data.{split}_images, the folder "
                         "of its images, is empty")
    return {"kind": "coco_json", "json_path": json_path, "image_folder": image_folder,
            "class_names": dict(data.class_names), "bad_boxes": data.bad_boxes}


def train_specs(data):
    """Descriptions of a run's training sources: `data.train_json` with its images if given, else `data.train`.

    Raises: ValueError when there is neither.
    """
    if data.train_json:
        return [_coco(data, "train") | {"weight": 1.0, "keep_empty": False}]
    if not data.train:
        raise ValueError("config.data: found nothing to train on; set data.train_json and data.train_images, or "
                         "data.train")
    return _checked(data.train, "train", "weight")


def eval_specs(data):
    """Descriptions of the sources that a run is scored on, each with a `name`.

    `data.eval_json` with its images if given, else `data.eval`. A run on a file of its own without held-out data is
    scored on what it was trained on, and the name says so.
    """
    if data.eval_json:
        return [_coco(data, "eval") | {"name": "eval"}]
    if data.train_json:
        return [_coco(data, "train") | {"name": "train_set"}]
    return _checked(data.eval, "eval", "name")


def _checked(specs, split, field):
    """Sources of a config as dicts. Raises: ValueError for one that lacks the field which only its split needs."""
    for place, spec in enumerate(specs):
        if field not in spec:
            raise ValueError(f"config.data.{split}[{place}]: found no {field!r} among {sorted(spec)}")
    return [dict(spec) for spec in specs]
