"""Built-in data: pictures of coloured shapes with exact boxes, masks, captions and answers.

Class names are "<colour> <shape>". Two kinds of names never occur in splits "train" and "test", neither in a
picture nor in `class_names`, captions or questions:

* **held-out combinations**: colour i with seen shape j where i + 3 j is a multiple of 5. Every word is known
  from other names; split "heldout" measures whether the model composes them.
* **unseen shapes**: flower, cloud, house and crown in any colour. Split "unseen_shapes" measures words that
  training never shows.

Every picture is a function of (seed, split, index) alone: any order, any process, any number of readers.
"""
import dataclasses
from typing import ClassVar

from input_pipeline.scenes_language import Thing
from input_pipeline.scenes_render import PALETTE, SHAPES, TEXTURES, draw_shape
from input_pipeline.scenes_world import RenderedWorld

COLOURS = tuple(PALETTE)
UNSEEN_SHAPES = ("flower", "cloud", "house", "crown")
SEEN_SHAPES = tuple(shape for shape in SHAPES if shape not in UNSEEN_SHAPES)


def is_held_out(colour: str, shape: str) -> bool:
    """True for combinations of two seen words that training never shows."""
    return shape in SEEN_SHAPES and (COLOURS.index(colour) + 3 * SEEN_SHAPES.index(shape)) % 5 == 0


ALL_NAMES = tuple(Thing(shape, colour=colour) for shape in SHAPES for colour in COLOURS)
SPECIAL_NAMES = {
    "train": (),
    "test": (),
    "heldout": tuple(thing for thing in ALL_NAMES if is_held_out(thing.colour, thing.noun)),
    "unseen_shapes": tuple(thing for thing in ALL_NAMES if thing.noun in UNSEEN_SHAPES),
}


class Scenes(RenderedWorld):
    """Source of the built-in pictures: 1 to 12 objects with a shape, a colour, a size and a texture.

    Args:
      seed: non-negative; another seed gives other pictures.
      num_examples: how many records there are; index 0 to num_examples − 1.
      split: a key of SPECIAL_NAMES. "heldout" and "unseen_shapes" show one of their names or more per image.
      task: "detection" records list every object; "caption" records list those that the caption names; "question"
        records have a question, number index modulo their count, for a caption; "description" records have a caption to be
        written, and in `about` five `references`; "mixed" has detection at even and captions at odd indices. The picture is the same for every task.
      canvas: (height, width) pixels, at least 64 each; objects scale with the shorter side.
      max_objects: most objects of a picture, 1 to 12.
    Raises: ValueError for an argument outside what is said above; IndexError when read outside.
    """
    world, generic = "scenes", "shape"
    # The gaps keep the words small and large unambiguous.
    diameters: ClassVar = {"small": (16, 22), "medium": (28, 38), "large": (46, 62)}

    def __init__(self, seed=0, num_examples=1000, *, split="train", task="detection", canvas=(128, 128),
                 max_objects=12):
        super().__init__(seed, num_examples, split, task, canvas, max_objects, ALL_NAMES, SPECIAL_NAMES)

    def draw(self, rng, thing, diameter, light):
        return draw_shape(rng, thing.noun, thing.colour, thing.texture, diameter, light)

    def vary(self, rng, thing):
        if thing.texture and rng.random() < 0.6:  # a repeated thing often keeps its texture
            return thing
        texture = TEXTURES[max(0, rng.integers(-1, len(TEXTURES)))]  # plain twice as often as any other
        return dataclasses.replace(thing, texture=texture)
