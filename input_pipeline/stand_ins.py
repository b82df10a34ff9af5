"""Small data sets in the place of large ones: every file that a config names, filled with rendered scenes.

    python -m input_pipeline.stand_ins --config=configs/glipv2_t_stage1.py --root=DIR

    python -m glipv2_jax.main --config=configs/glipv2_t_stage1.py:rehearsal --workdir=RUN --config.data.root=DIR

The first writes for each source of `data.train` and `data.eval` annotations in its official format, and images, so that the
second goes through the readers, the mixture and the program that a pre-training run goes through.
"""
import argparse
import importlib.util
import json
import pathlib

from PIL import Image

from input_pipeline import odvg
from input_pipeline.masks import encode_mask
from input_pipeline.scenes import Scenes

SIZES = ((96, 128), (128, 96), (112, 112))         # height and width: landscape, portrait, square


def write(spec, root, num_images=6, seed=0):
    """Writes one source.

    Args:
      spec: its description in a config, of kind coco_json, grounding_json or odvg with captions.
      root: what its paths are relative to.
      num_images: how many records it gets.
      seed: of the scenes.
    Raises: ValueError for a kind that pre-training does not use.
    """
    if spec["kind"] not in WRITERS:
        raise ValueError(f"source {spec.get('name')!r}: found kind {spec['kind']!r}, expected one of {sorted(WRITERS)}")
    task, writer = WRITERS[spec["kind"]]
    sources = [Scenes(seed=seed + n, num_examples=num_images, split="train", task=task, canvas=size, max_objects=4)
               for n, size in enumerate(SIZES)]
    records = [sources[index % len(sources)][index] | {"image_id": index + 1} for index in range(num_images)]
    folder = pathlib.Path(root) / spec["image_folder"]
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        Image.fromarray(record["image"]).save(folder / _file(record), quality=95)
    path = pathlib.Path(root) / spec.get("json_path", spec.get("jsonl_path", ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    writer(path, records, sources[0].class_names)


def _file(record):
    return f"{record['image_id']:012d}.jpg"


def _image(record):
    height, width = record["image"].shape[:2]
    return {"id": record["image_id"], "file_name": _file(record), "height": height, "width": width}


def _xywh(box):
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1 + 1, y2 - y1 + 1]


def _annotations(records, more):
    """COCO annotations; `more(record, n)` gives what else the n-th box has."""
    found = [{"image_id": record["image_id"], "bbox": _xywh(box), "area": _xywh(box)[2] * _xywh(box)[3], "iscrowd": 0,
              "segmentation": encode_mask(record["masks"][n])} | more(record, n)
             for record in records for n, box in enumerate(record["boxes"])]
    return [{"id": place + 1} | annotation for place, annotation in enumerate(found)]


def _write_coco(path, records, names):
    present = sorted({int(c) for record in records for c in record["classes"]})      # all names need several prompts
    path.write_text(json.dumps({
        "images": [_image(record) for record in records],
        "annotations": _annotations(records, lambda record, n: {"category_id": int(record["classes"][n]) + 1}),
        "categories": [{"id": c + 1, "name": names[c]} for c in present]}))


def _write_grounding(path, records, names):
    path.write_text(json.dumps({
        "images": [_image(record) | {"caption": record["caption"], "dataset_name": "scenes"} for record in records],
        "annotations": _annotations(records, lambda record, n: {"category_id": 1,
                                                                "tokens_positive": record["spans"][n]}),
        "categories": [{"id": 1, "name": "object"}]}))


class _Records:
    """A list of records as a source."""

    def __init__(self, records, names):
        self._records, self.class_names = records, names

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        return self._records[index]


def _write_odvg(path, records, names):
    odvg.write(_Records(records, names), path, lambda index: _file(records[index]))


# kind → task of the scenes, writer.
WRITERS = {"coco_json": ("detection", _write_coco), "grounding_json": ("caption", _write_grounding),
           "odvg": ("caption", _write_odvg)}


def main(argv=None):
    """Entry point."""
    parser = argparse.ArgumentParser("python -m input_pipeline.stand_ins", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="a config file, such as configs/glipv2_t_stage1.py")
    parser.add_argument("--root", required=True, help="folder to write to, the run's --config.data.root")
    parser.add_argument("--num-images", type=int, default=6, help="of each source")
    args = parser.parse_args(argv)
    file = importlib.util.spec_from_file_location("config", args.config)
    module = importlib.util.module_from_spec(file)
    file.loader.exec_module(module)
    config = module.get_config()
    for place, spec in enumerate((*config.data.train, *config.data.eval)):
        write(dict(spec), args.root, args.num_images, seed=10 * place)
        print(f"{spec['name']}: {args.num_images} records in {args.root}")


if __name__ == "__main__":
    main()
