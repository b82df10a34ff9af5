"""What the built-in worlds share: splits, random access, records. A world says what there is and draws it."""
import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from input_pipeline.scenes_backgrounds import BACKGROUND_WORDS, render_background
from input_pipeline.scenes_language import SIZES, Thing, make_caption, make_questions
from input_pipeline.scenes_render import PALETTE, Canvas, Cutout, boxes_of
from input_pipeline.schema import NO_CLASS

MIN_CANVAS = 64  # pixels; below, a small object is too small to tell what it is
MAX_OBJECTS = 12
TASKS = ("detection", "caption", "mixed", "question", "description")
REFERENCES = 5    # captions of a picture that a description is compared with
PEOPLE = 10       # who answer a question, all alike: as many as VQA v2 asks
# Colours are those of scenes; a world without colours asks for none.
ANSWERS = ("yes", "no", *map(str, range(MAX_OBJECTS + 1)), *PALETTE)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture and all that is true of it.

    Attributes:
      image: uint8 [H, W, 3].
      things: n objects from the back to the front.
      boxes: float32 [n, 4] xyxy of the visible pixels, inclusive corners.
      masks: bool [n, H, W], visible pixels; at least half of every object is visible.
      background: kind of background.
    """
    image: np.ndarray
    things: tuple[Thing, ...]
    boxes: np.ndarray
    masks: np.ndarray
    background: str


class RenderedWorld:
    """A random-access source whose pictures are rendered when read; see `input_pipeline.schema`.

    A picture is a function of (world, seed, split, index) and the canvas. Subclasses define `draw`, and
    `vary` where things have more than a name and a size.

    Attributes:
      name: "<world>_<split>_<task>".
      class_names: names that may occur in this split; empty for tasks "caption", "question" and "description".
      asks, possible_answers: of task "question", see `input_pipeline.schema`. writes: of task "description".
      category_ids: ids of the same names, equal in every split.
      held_out: indices into class_names that split "train" never shows; score these for zero-shot results.
    """
    world: str                    # name of the world
    generic: str                  # noun for any of its things
    diameters: ClassVar[Mapping]  # size word -> (least, most) pixels on a canvas whose shorter side is 128

    def __init__(self, seed, num_examples, split, task, canvas, max_objects,
                 names: Sequence[Thing], special: Mapping[str, Sequence[Thing]]):
        """`names` are all things; `special` lists, for every split, those that it alone shows."""
        self.name = f"{self.world}_{split}_{task}"
        if split not in special:
            raise ValueError(f"{self.world}: split {split!r}, expected one of {tuple(special)}")
        if task not in TASKS:
            raise ValueError(f"{self.world}: task {task!r}, expected one of {TASKS}")
        if seed < 0 or num_examples < 1:
            raise ValueError(f"{self.name}: seed {seed}, num_examples {num_examples}, expected ≥ 0 and ≥ 1")
        if len(canvas) != 2 or min(canvas) < MIN_CANVAS:
            raise ValueError(f"{self.name}: canvas {canvas}, expected (height, width) ≥ {MIN_CANVAS} pixels")
        if not 1 <= max_objects <= MAX_OBJECTS:
            raise ValueError(f"{self.name}: max_objects {max_objects}, expected 1 to {MAX_OBJECTS}")
        self.seed, self.split, self.task, self.max_objects = seed, split, task, max_objects
        self.canvas = (int(canvas[0]), int(canvas[1]))
        self._num_examples = num_examples
        self._stream = tuple(special).index(split)
        self._special = tuple(special[split])
        unseen = {thing for things in special.values() for thing in things}
        self._seen = tuple(thing for thing in names if thing not in unseen)
        self._names = tuple(thing for thing in names if thing not in unseen or thing in self._special)
        self._class_of = {thing.name: index for index, thing in enumerate(self._names)}
        listed = self._names if task in ("detection", "mixed") else ()
        self.asks, self.writes = task == "question", task == "description"
        self.possible_answers = ANSWERS
        self.class_names = tuple(thing.name for thing in listed)
        self.category_ids = tuple(names.index(thing) + 1 for thing in listed)
        self.held_out = tuple(index for index, thing in enumerate(listed) if thing in self._special)

    def draw(self, rng: np.random.Generator, thing: Thing, diameter: float, light: float) -> Cutout:
        """Draws a thing of about `diameter` pixels, lit from direction `light` (radians)."""
        raise NotImplementedError

    def vary(self, rng: np.random.Generator, thing: Thing) -> Thing:
        """Gives a thing what its name leaves open, its size excepted."""
        return thing

    def __len__(self):
        return self._num_examples

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of any picture."""
        return self.canvas

    def __getitem__(self, index):
        scene, rng = self._render(index)
        record = {"image": scene.image, "image_id": int(index)}
        if self.task in ("caption", "description") or (self.task == "mixed" and index % 2):
            record.update(_about(scene, *self._caption(rng, scene)))
        elif self.task != "question":
            classes = np.array([self._class_of[thing.name] for thing in scene.things], np.int32)
            record.update(boxes=scene.boxes, classes=classes, masks=scene.masks)
        asked = make_questions(rng, scene.things, scene.boxes, self._names, self.generic)
        record["questions"] = [{"question": one.text, "answer": one.answer} for one in asked]
        if self.task == "question":
            chosen = index % len(asked)
            record.update(_about(scene, asked[chosen].text, asked[chosen].spans))
            record["questions"] = [record["questions"][chosen] | {"answers": [asked[chosen].answer] * PEOPLE}]
            record["about"] = {"question_type": " ".join(asked[chosen].text.split()[:2])}
        elif self.task == "description":
            others = [self._caption(rng, scene)[0] for _ in range(REFERENCES - 1)]
            record["about"] = {"references": [record["caption"], *others]}
        return record

    def _caption(self, rng, scene):
        ending = BACKGROUND_WORDS.get(scene.background) if rng.random() < 0.5 else None
        return make_caption(rng, scene.things, scene.boxes, self.generic, ending)

    def scene(self, index: int) -> Scene:
        """The picture of record `index` with all of its objects. Raises: IndexError outside 0 to len − 1."""
        return self._render(index)[0]

    def _render(self, index):
        """The scene, and the generator that its words are to be drawn with."""
        index = operator.index(index)
        if not 0 <= index < self._num_examples:
            raise IndexError(f"{self.name}: index {index}, expected 0 to {self._num_examples - 1}")
        entropy = np.random.SeedSequence((self.seed, self._stream, index))
        rng = np.random.Generator(np.random.Philox(entropy))
        background, kind = render_background(rng, self.canvas)
        canvas, unit = Canvas(background), min(self.canvas) / 128
        light, min_visible = rng.uniform(0, 2 * np.pi), rng.choice([0.5, 0.7, 0.95])
        things = []
        for thing in self._choose(rng):
            diameter = unit * rng.uniform(*self.diameters[thing.size])
            # A crowded picture has no room for a late object; it is left out of picture and truth alike.
            if canvas.place(rng, self.draw(rng, thing, diameter, light), min_visible):
                things.append(thing)
        masks = canvas.masks()
        return Scene(canvas.image(rng), tuple(things), boxes_of(masks), masks, kind), rng

    def _choose(self, rng):
        """The things to place. The first always finds a place, so it is the one the split is about."""
        crowded = rng.random() < 0.15
        things = []
        for place in range(rng.integers(1, min(self.max_objects, MAX_OBJECTS if crowded else 7) + 1)):
            special = self._special and (place == 0 or rng.random() < 0.25)
            names = self._special if special else self._seen
            if things and rng.random() < 0.3:  # repeat one, so that there is something to count
                names = things
            thing = self.vary(rng, names[rng.integers(len(names))])
            size = SIZES[rng.choice(3, p=(0.55, 0.4, 0.05) if crowded else (0.3, 0.4, 0.3))]
            things.append(dataclasses.replace(thing, size=size))
        return things


def _about(scene, text, spans):
    """Keys of a record whose text names the things that are keys of `spans`."""
    named = list(spans)
    return {"caption": text, "spans": [[spans[i]] for i in named], "boxes": scene.boxes[named], "masks": scene.masks[named],
            "classes": np.full(len(named), NO_CLASS, np.int32)}
