"""VQA v2: questions about photographs of COCO, with ten answers each."""
from typing import ClassVar

import tensorflow_datasets as tfds

from input_pipeline.captions import Vqa
from input_pipeline.tfds_builders.base import SourceBuilder

_SPLITS = {"train": "train2014", "validation": "val2014", "test": "test2015"}


class VqaV2(SourceBuilder):
    """A record for each open-ended question; those of the test split have no answers."""

    name = "vqa_v2"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Questions, answers."}
    DESCRIPTION = ("443,757, 214,354 and 447,793 questions about photographs of COCO; train and validation have ten answers "
                   "to each.")
    HOMEPAGE = "https://visualqa.org"
    CITATION = """@inproceedings{goyal2017vqa,
  author = {Goyal, Yash and Khot, Tejas and Summers-Stay, Douglas and Batra, Dhruv and Parikh, Devi},
  title = {Making the {V} in {VQA} Matter: Elevating the Role of Image Understanding in Visual Question Answering},
  booktitle = {CVPR},
  year = {2017}}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    vqa/v2_OpenEnded_mscoco_{train2014,val2014,test2015}_questions.json and
    vqa/v2_mscoco_{train2014,val2014}_annotations.json: from https://visualqa.org/download.html
    coco/{train2014,val2014,test2015}/: the images, from https://cocodataset.org/#download
    """

    def files(self, folder):
        return {split: folder / "vqa" / f"v2_OpenEnded_mscoco_{name}_questions.json" for split, name in _SPLITS.items()}

    def source(self, folder, split):
        name = _SPLITS[split]
        annotations = None if split == "test" else folder / "vqa" / f"v2_mscoco_{name}_annotations.json"
        return Vqa(self.files(folder)[split], folder / "coco" / name, annotations_path=annotations)
