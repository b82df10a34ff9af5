"""Built-in data: pictures of coloured shapes with exact boxes, masks, captions and answers, rendered on demand.

Class names are "<colour> <shape>". Two kinds of names never occur in splits "train" and "test", neither in a
picture nor in `class_names`, captions or questions:

* **held-out combinations**: colour i with seen shape j where (i + 3 j) is a multiple of 5. Both words are
  known from other names; split "heldout" measures whether the model composes them.
* **unseen shapes**: flower, cloud, house and crown in any colour. Split "unseen_shapes" measures words that
  training never shows.

Every picture is a function of (seed, split, index) alone: any order, any process, any number of readers.
"""
import dataclasses
import operator

import numpy as np

from input_pipeline.scenes_backgrounds import BACKGROUND_WORDS, render_background
from input_pipeline.scenes_language import SIZES, Thing, make_caption, make_questions
from input_pipeline.scenes_render import PALETTE, SHAPES, TEXTURES, Canvas, boxes_of, draw_shape
from input_pipeline.schema import NO_CLASS

COLOURS = tuple(PALETTE)
UNSEEN_SHAPES = ("flower", "cloud", "house", "crown")
SEEN_SHAPES = tuple(shape for shape in SHAPES if shape not in UNSEEN_SHAPES)
SPLITS = ("train", "test", "heldout", "unseen_shapes")
TASKS = ("detection", "caption", "mixed")
MIN_CANVAS = 64  # pixels; below, a small object is too small to show its texture

# Diameters by size word, for a canvas whose shorter side is 128. The gaps keep the words unambiguous.
DIAMETERS = {"small": (16, 22), "medium": (28, 38), "large": (46, 62)}


def is_held_out(colour: str, shape: str) -> bool:
    """True for combinations of seen words that training never shows."""
    return shape in SEEN_SHAPES and (COLOURS.index(colour) + 3 * SEEN_SHAPES.index(shape)) % 5 == 0


def _names(keep):
    return tuple(Thing(shape, "medium", colour) for shape in SHAPES for colour in COLOURS if keep(colour, shape))


ALL_NAMES = _names(lambda colour, shape: True)
SEEN_NAMES = _names(lambda colour, shape: shape in SEEN_SHAPES and not is_held_out(colour, shape))
HELD_OUT_NAMES = _names(is_held_out)
UNSEEN_NAMES = _names(lambda colour, shape: shape in UNSEEN_SHAPES)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture and all that is true of it.

    Attributes:
      image: uint8 [H, W, 3].
      things: n objects from the back to the front.
      boxes: float32 [n, 4] xyxy of the visible pixels, inclusive corners.
      masks: bool [n, H, W], visible pixels.
      background: kind of background.
    """
    image: np.ndarray
    things: tuple[Thing, ...]
    boxes: np.ndarray
    masks: np.ndarray
    background: str


class Scenes:
    """Random-access source of the built-in pictures; see `input_pipeline.schema` for records and sources.

    Args:
      seed: non-negative; another seed gives other pictures.
      num_examples: how many records there are; index 0 to num_examples − 1.
      split: one of SPLITS. "heldout" and "unseen_shapes" show at least one name of their kind per picture.
      task: "detection" records list every object; "caption" records list those the caption names; "mixed" has
        detection at even and captions at odd indices. The picture is the same for every task.
      canvas: (H, W) pixels, at least 64 each; objects scale with the shorter side.
      max_objects: objects per picture are 1 to this, at most 12.
    Attributes:
      class_names: "red star" and so on; empty for task "caption".
      category_ids: ids that are the same in every split.
      held_out: indices into class_names that training never sees; score these for zero-shot results.
    Raises: ValueError for an argument outside what is said above; IndexError when read outside.
    """

    def __init__(self, seed=0, num_examples=1000, *, split="train", task="detection", canvas=(128, 128), max_objects=12):
        if split not in SPLITS:
            raise ValueError(f"scenes: split {split!r}, expected one of {SPLITS}")
        if task not in TASKS:
            raise ValueError(f"scenes: task {task!r}, expected one of {TASKS}")
        if seed < 0 or num_examples < 1:
            raise ValueError(f"scenes: seed {seed} and num_examples {num_examples}, expected ≥ 0 and ≥ 1")
        if len(canvas) != 2 or min(canvas) < MIN_CANVAS:
            raise ValueError(f"scenes: canvas {canvas}, expected (height, width) of at least {MIN_CANVAS} each")
        if not 1 <= max_objects <= 12:
            raise ValueError(f"scenes: max_objects {max_objects}, expected 1 to 12")
        self.name = f"scenes_{split}_{task}"
        self.seed, self.split, self.task, self.max_objects = seed, split, task, max_objects
        self.canvas = (int(canvas[0]), int(canvas[1]))
        self._num_examples = num_examples
        self._special = {"heldout": HELD_OUT_NAMES, "unseen_shapes": UNSEEN_NAMES}.get(split, ())
        self._names = tuple(name for name in ALL_NAMES if name in SEEN_NAMES or name in self._special)
        self._index_of = {name.name: index for index, name in enumerate(self._names)}
        listed = () if task == "caption" else self._names
        self.class_names = tuple(name.name for name in listed)
        self.category_ids = tuple(ALL_NAMES.index(name) + 1 for name in listed)
        self.held_out = tuple(index for index, name in enumerate(listed) if name in self._special)

    def __len__(self):
        return self._num_examples

    def __getitem__(self, index):
        scene, rng = self._render(index)
        record = {"image": scene.image, "image_id": int(index)}
        if self.task == "caption" or (self.task == "mixed" and index % 2):
            ending = BACKGROUND_WORDS.get(scene.background) if rng.random() < 0.5 else None
            caption, spans = make_caption(rng, scene.things, scene.boxes, "shape", ending)
            named = list(spans)
            record.update(boxes=scene.boxes[named], classes=np.full(len(named), NO_CLASS, np.int32),
                          caption=caption, spans=[[spans[i]] for i in named], masks=scene.masks[named])
        else:
            classes = np.array([self._index_of[thing.name] for thing in scene.things], np.int32)
            record.update(boxes=scene.boxes, classes=classes, masks=scene.masks)
        record["questions"] = make_questions(rng, scene.things, scene.boxes, self._names, "shape")
        return record

    def scene(self, index: int) -> Scene:
        """The picture of record `index` with the full list of its objects."""
        return self._render(index)[0]

    def _render(self, index):
        """The scene, and the generator with which its words are to be drawn."""
        index = operator.index(index)
        if not 0 <= index < self._num_examples:
            raise IndexError(f"{self.name}: index {index}, expected 0 to {self._num_examples - 1}")
        entropy = np.random.SeedSequence((self.seed, SPLITS.index(self.split), index))
        rng = np.random.Generator(np.random.Philox(entropy))
        background, kind = render_background(rng, self.canvas)
        canvas, unit = Canvas(background), min(self.canvas) / 128
        light, min_visible = rng.uniform(0, 2 * np.pi), rng.choice([0.5, 0.7, 0.95])
        things = []
        for thing in self._draw_things(rng):
            diameter = unit * rng.uniform(*DIAMETERS[thing.size])
            cutout = draw_shape(rng, thing.noun, thing.colour, thing.texture, diameter, light)
            # A crowded picture has no room for a late object; it is left out of picture and truth alike.
            if canvas.place(rng, cutout, min_visible):
                things.append(thing)
        masks = canvas.masks()
        return Scene(canvas.image(rng), tuple(things), boxes_of(masks), masks, kind), rng

    def _draw_things(self, rng):
        """The objects to place, a name of the split's own kind first."""
        most = min(self.max_objects, 12 if rng.random() < 0.15 else 7)
        things = []
        for place in range(rng.integers(1, most + 1)):
            names = self._special if self._special and (place == 0 or rng.random() < 0.25) else SEEN_NAMES
            thing = names[rng.integers(len(names))]
            texture = TEXTURES[max(0, rng.integers(-1, len(TEXTURES)))]
            if things and rng.random() < 0.3:  # repeat a thing, so that there is something to count
                thing = things[rng.integers(len(things))]
                texture = thing.texture if rng.random() < 0.6 else texture
            # Few large ones in a full picture.
            size = SIZES[rng.choice(3, p=(0.3, 0.4, 0.3) if most <= 7 else (0.55, 0.4, 0.05))]
            things.append(dataclasses.replace(thing, size=size, texture=texture))
        return things
