"""PhraseCut: phrases, the boxes and masks of all instances that each names."""
from typing import ClassVar

import tensorflow_datasets as tfds

from input_pipeline.grounding_json import GroundingJson
from input_pipeline.tfds_builders.base import SourceBuilder

_SPLITS = {"train": "train", "validation": "val", "miniv": "miniv", "test": "test"}


class Phrasecut(SourceBuilder):
    """The files of MDETR, with masks."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Phrases, boxes, masks."}
    DESCRIPTION = "Phrases on images of Visual Genome, with the masks of what they name."
    HOMEPAGE = "https://github.com/ChenyunWu/PhraseCutDataset"
    CITATION = """@inproceedings{wu2020phrasecut,
  author = {Wu, Chenyun and Lin, Zhe and Cohen, Scott and Bui, Trung and Maji, Subhransu},
  title = {PhraseCut: Language-Based Image Segmentation in the Wild},
  booktitle = {CVPR},
  year = {2020}}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    mdetr_annotations/finetune_phrasecut_{train,val,miniv,test}.json: from https://zenodo.org/records/4729015
    gqa/images/: the images of Visual Genome, from https://cs.stanford.edu/people/dorarad/gqa/download.html
    """

    def files(self, folder):
        return {split: folder / "mdetr_annotations" / f"finetune_phrasecut_{name}.json"
                for split, name in _SPLITS.items()}

    def source(self, folder, split):
        return GroundingJson(self.files(folder)[split], folder / "gqa" / "images", with_masks=True,
                             keep_empty=split != "train", bad_boxes="repair")
