"""Object Detection in the Wild: a configuration for each of its small sets, made from the folder that holds the set."""
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar

import tensorflow_datasets as tfds

from input_pipeline.coco_json import CocoJson
from input_pipeline.tfds_builders.base import SourceBuilder

# GLIP's files lack the category 0 that Roboflow adds to every set.
_FILE = "annotations_without_background.json"
_SPLITS = {"train": ("train",), "validation": ("valid", "val"), "minival": ("mini_val",), "test": ("test",)}


@dataclasses.dataclass(eq=False, kw_only=True)
class OdinwConfig(tfds.core.BuilderConfig):
    """A set.

    Attributes:
      folder: holds {train,valid,mini_val,test}/annotations_without_background.json beside the images, or
        {train,val,test}_annotations_without_background.json and all images.
      class_names: words of the prompt, as `CocoJson` takes them.
    """

    folder: str
    class_names: Mapping[str, str | Mapping[str, str]] | None = None


def configs(folder) -> dict[str, OdinwConfig]:
    """{name: configuration} of every set below a folder; the name is the path with "_" where it has "/" or a space.

    Raises: ValueError where there is none.
    """
    folder, found = pathlib.Path(folder), {}
    for path in sorted(folder.rglob(f"*{_FILE}")):
        if path.name == _FILE and path.parent.name not in sum(_SPLITS.values(), ()):
            raise ValueError(f"{path}: expected it in a folder train, valid, mini_val or test")
        place = path.parent.parent if path.name == _FILE else path.parent
        name = "_".join(str(place.relative_to(folder)).replace(" ", "_").split("/"))
        found[name] = OdinwConfig(name=name, folder=str(place), description=f"{place.relative_to(folder)} of ODinW")
    if not found:
        raise ValueError(f"{folder}: found no *{_FILE} below, expected the sets of ODinW")
    return found


class Odinw(SourceBuilder):
    """A set: `Odinw(config=configs(folder)[name], data_dir=…)`. Prepared, it is `odinw/NAME`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Boxes and classes."}
    DESCRIPTION = "Small detection data sets of many domains, each with classes of its own."
    HOMEPAGE = "https://github.com/microsoft/GLIP#object-detection-in-the-wild-benchmark"
    CITATION = """@inproceedings{li2022elevater,
  author = {Li, Chunyuan and Liu, Haotian and Li, Liunian Harold and Zhang, Pengchuan and others},
  title = {ELEVATER: A Benchmark and Toolkit for Evaluating Language-Augmented Visual Models},
  booktitle = {NeurIPS Datasets and Benchmarks},
  year = {2022}}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    The zip files of the sets are linked from https://github.com/microsoft/GLIP; unpack them into one folder.
    """

    def folder(self, dl_manager):
        if not isinstance(self.builder_config, OdinwConfig):
            raise ValueError("odinw: found no configuration, expected one of "
                             "input_pipeline.tfds_builders.odinw.configs(folder)")
        return pathlib.Path(self.builder_config.folder)

    def files(self, folder):
        found = {}
        for split, names in _SPLITS.items():
            places = [path for name in names for path in (folder / name / _FILE, folder / f"{name}_{_FILE}")]
            found[split] = next((path for path in places if path.is_file()), places[0])
        return found

    def source(self, folder, split):
        path = self.files(folder)[split]
        return CocoJson(path, path.parent, class_names=self.builder_config.class_names, keep_empty=split != "train",
                        bad_boxes="repair")
