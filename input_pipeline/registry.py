"""From what a config says to sources and their stream: one place that knows every kind by name."""
import importlib
import os

from input_pipeline.caption_packing import Packing
from input_pipeline.sources import ClassTable, mixture_weights

# kind → module and class; a module is imported when its kind is asked for: a run pays for the readers that it uses.
KINDS = {
    "scenes": ("scenes", "Scenes"),
    "stickers": ("stickers", "Stickers"),
    "coco_json": ("coco_json", "CocoJson"),            # COCO, Objects365, OpenImages, ODinW, LVIS
    "grounding_json": ("grounding_json", "GroundingJson"),
    "odvg": ("odvg", "Odvg"),
    "tsv": ("tsv", "Tsv"),
    "voc": ("voc", "Voc"),
    "flickr_entities": ("flickr_entities", "FlickrEntities"),
    "pairs": ("pairs", "Pairs"),                       # images with texts, to be labelled
    "coco_captions": ("captions", "CocoCaptions"),
    "vqa": ("captions", "Vqa"),
    "records": ("records", "Records"),                 # what `glipv2 prepare` writes
    "tfds": ("tfds_source", "Tfds"),                   # coco, lvis, voc, ref_coco of TFDS, and `tfds_builders`
}
# Options that are paths, relative to the root.
PATHS = ("folder", "json_path", "jsonl_path", "yaml_path", "annotations_path", "label_map", "image_folder",
         "coco_folder", "data_dir")

_NOT_OPTIONS = ("kind", "weight", "copies", "rehearsed", "num_negatives", "name", "protocol")


def make_source(spec, root=""):
    """A source from its description in a config.

    Args:
      spec: dict with `kind`, one of `KINDS`, and the options of that kind. `name` is what errors, logs and scores
        call the source; `weight`, `copies` and `rehearsed` belong to the mixture, `num_negatives` to training prompts,
        `protocol` to evaluation.
      root: what relative paths among the options start from.
    Raises: ValueError for an unknown kind or option.
    """
    options = {k: v for k, v in spec.items() if k not in _NOT_OPTIONS}
    kind = spec.get("kind")
    if kind not in KINDS:
        raise ValueError(f"config.data: found source kind {kind!r}, expected one of {sorted(KINDS)}")
    options |= {key: os.path.join(root, options[key]) for key in PATHS if options.get(key) is not None}
    module, name = KINDS[kind]
    try:
        source = getattr(importlib.import_module(f"input_pipeline.{module}"), name)(**options)
    except TypeError as error:
        raise ValueError(f"config.data, source of kind {kind!r}: {error}") from error
    source.name = spec.get("name", source.name)
    return source


def _coco(data, split):
    json_path, image_folder = data[f"{split}_json"], data[f"{split}_images"]
    if not image_folder:
        raise ValueError(f"config.data.{split}_json is {json_path!r}, but config.data.{split}_images, the folder "
                         "of its images, is empty")
    return {"kind": "coco_json", "json_path": json_path, "image_folder": image_folder,
            "class_names": data.class_names.to_dict(), "bad_boxes": data.bad_boxes, "with_masks": data.mask_size > 0}


def _train_coco(data):
    return _coco(data, "train") | {"shots": data.train_shots, "shots_seed": data.train_shots_seed}


def train_specs(data):
    """Descriptions of a run's training sources: `data.train_json` with its images if given, and those of `data.rehearsal`;
    else `data.train`.

    Raises: ValueError when there is neither, and for a share of rehearsal that is none.
    """
    if data.train_json:
        own = _train_coco(data) | {"copies": data.train_copies, "keep_empty": False}
        if not data.rehearsal:
            return [own]
        share = data.rehearsal_share
        if not 0 < share < 1:
            raise ValueError(f"config.data.rehearsal_share: found {share}, expected a number between 0 and 1")
        weights = [spec.get("weight", 1) for spec in data.rehearsal]
        return [own | {"weight": 1 - share},
                *({**spec, "weight": share * weight / sum(weights), "rehearsed": True}
                  for spec, weight in zip(data.rehearsal, weights))]
    if data.rehearsal:
        raise ValueError("config.data.rehearsal: found sources, but no data.train_json that they are mixed into")
    if not data.train:
        raise ValueError("config.data: found nothing to train on; set data.train_json and data.train_images, or "
                         "data.train")
    return [dict(spec) for spec in data.train]


def epoch_records(specs, sources):
    """How many images an epoch draws: all records, copies included, and with them their share of those rehearsed.

    Args:
      specs: `train_specs(config.data)`. sources: what they describe.
    """
    records = sum(len(source) * spec.get("copies", 1) for spec, source in zip(specs, sources) if not spec.get("rehearsed"))
    return records / (1 - sum(spec["weight"] for spec in specs if spec.get("rehearsed")))


def train_options(config, specs, sources, tokenizer, answers=None):
    """What a config says to `pipeline.train_batches` and `train_reader`, as their arguments.

    Args:
      specs: `train_specs(config.data)`. sources: what they describe. answers: AnswerList of a model that answers.
    """
    d = config.data
    return {"sources": sources, "weights": mixture_weights(specs, sources), "seed": config.seed,
            "batch_size": config.train.batch_size, "canvases": [tuple(canvas) for canvas in d.canvases],
            "augment": d.augment, "max_tokens": d.max_tokens, "max_boxes": d.max_boxes,
            "num_negatives": [None if count < 0 else count
                              for count in (spec.get("num_negatives", d.num_negatives) for spec in specs)],
            "wordings": tuple(d.wordings), "mlm_on_detection": d.mlm_on_detection, "mask_size": d.mask_size or None,
            "class_table": ClassTable.from_sources(sources),
            "tokenizer": tokenizer, "packing": Packing(d.packed_captions, d.unpacked_probability),
            "writes": config.loss.caption_words > 0, "answers": answers}


def eval_specs(data):
    """Descriptions of the sources that a run is scored on, each with a `name`.

    `data.eval_json` with its images if given, else `data.eval`. A run on a file of its own without held-out data is
    scored on what it was trained on, and the name says so.
    """
    if data.eval_json:
        return [_coco(data, "eval") | {"name": "eval"}]
    if data.train_json:
        return [_train_coco(data) | {"name": "train_set"}]
    for place, spec in enumerate(data.eval):
        if "name" not in spec:
            raise ValueError(f"config.data.eval[{place}]: found no 'name' among {sorted(spec)}")
    return [dict(spec) for spec in data.eval]
