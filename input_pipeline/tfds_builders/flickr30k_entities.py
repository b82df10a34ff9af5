"""Flickr30k Entities as grounding: captions whose phrases have boxes."""
from typing import ClassVar

import tensorflow_datasets as tfds

from input_pipeline.grounding_json import GroundingJson
from input_pipeline.tfds_builders.base import SourceBuilder

_SPLITS = {"train": "train", "validation": "val", "test": "test"}


class Flickr30kEntities(SourceBuilder):
    """The file of MDETR that has an entry for each caption and lists every box of a phrase (`separateGT`)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Captions, boxes, characters of the phrases."}
    DESCRIPTION = "31,783 photographs with five captions each, and boxes for the phrases of the captions."
    HOMEPAGE = "https://bryanplummer.com/Flickr30kEntities/"
    CITATION = """@inproceedings{plummer2015flickr30k,
  author = {Plummer, Bryan A. and Wang, Liwei and Cervantes, Chris M. and Caicedo, Juan C. and Hockenmaier, Julia and
            Lazebnik, Svetlana},
  title = {Flickr30k Entities: Collecting Region-to-Phrase Correspondences for Richer Image-to-Sentence Models},
  booktitle = {ICCV},
  year = {2015}}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    mdetr_annotations/final_flickr_separateGT_{train,val,test}.json: from https://zenodo.org/records/4729015
    flickr30k/flickr30k_images/{train,val,test}/: the images, from https://shannon.cs.illinois.edu/DenotationGraph/,
      each in the folder of its split. Research only.
    """

    def files(self, folder):
        return {split: folder / "mdetr_annotations" / f"final_flickr_separateGT_{name}.json"
                for split, name in _SPLITS.items()}

    def source(self, folder, split):
        images = folder / "flickr30k" / "flickr30k_images" / _SPLITS[split]
        return GroundingJson(self.files(folder)[split], images, keep_empty=split != "train", bad_boxes="repair")
