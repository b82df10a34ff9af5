"""Builders for data sets that TensorFlow Datasets lacks. Importing this package registers them with it."""
from input_pipeline.tfds_builders import flickr30k_entities, odinw, phrasecut, vqa_v2  # noqa: F401
