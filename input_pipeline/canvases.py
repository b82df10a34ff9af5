"""Which canvas a step of training has, and which records lie on it. A pure function of (seed, step), as in `sources`.

All images of a step share one canvas, so that every host has arrays of the same shape without asking the others, and
little of them is padding. Records are sorted by canvas once, from the sizes that the sources state; of each record
one byte is kept, and its index.
"""
import math
from collections.abc import Sequence

import numpy as np

from input_pipeline import image_ops
from input_pipeline.sources import Mixture, Place, Turns

_LEAST_SHARE = 1 / 2048              # of the stream: fewer records of a source do not get a canvas of their own
_SAMPLE = 500                        # images of a source by which padding is estimated


class Order:
    """The canvas of every step, and the record at every place of it.

    A canvas has a share of the steps as large as the share of its records in the stream, and an own `Mixture`. With a
    single canvas, position p of the stream is position p of the one mixture of all sources.

    Args:
      sources, weights: what to mix, and the share of each in the stream, in any unit.
      seed: of the order.
      batch_size: images of a step over all hosts.
      canvases: (H, W) choices. A source without `image_size` goes to the one that is nearest to a square.
      short_side, max_size: of the largest resize that images meet.
    """

    def __init__(self, sources: Sequence, weights: Sequence[float], seed: int, batch_size: int,
                 canvases: Sequence[tuple[int, int]], short_side: int, max_size: int):
        empty = [source.name for source in sources if not len(source)]
        if empty:
            raise ValueError(f"sources: found no record in {empty}, expected at least one record in each")
        Mixture([len(source) for source in sources], weights, seed)      # refuses what cannot be mixed
        self._batch_size, total = batch_size, float(sum(weights))
        cells = [{} for _ in canvases]                       # for each canvas: source → indices of its records there
        for index, (source, weight) in enumerate(zip(sources, weights)):
            least = _LEAST_SHARE * total / weight * len(source)
            for cell, chosen in zip(cells, by_canvas(source, canvases, short_side, max_size, least)):
                if len(chosen):
                    cell[index] = chosen
        self.canvases = [canvas for canvas, cell in zip(canvases, cells) if cell]
        self._cells = [cell for cell in cells if cell]
        self._parts = [[weights[index] / total * len(chosen) / len(sources[index]) for index, chosen in cell.items()]
                       for cell in self._cells]
        self.shares = [sum(parts) for parts in self._parts]
        self._mixtures = [Mixture([len(chosen) for chosen in cell.values()], parts, seed)
                          for cell, parts in zip(self._cells, self._parts)]
        self._turns = Turns(self.shares, seed)

    def canvas(self, step: int) -> tuple[int, int]:
        return self.canvases[self._turns[step][0]]

    def place(self, step: int, row: int) -> Place:
        """Source and record of a row of a step's global batch."""
        canvas, turn = self._turns[step]
        cell = self._cells[canvas]
        source, record = self._mixtures[canvas][turn * self._batch_size + row]
        source = list(cell)[source]
        return Place(source, int(cell[source][record]))

    def another(self, step: int, source: int, rng: np.random.Generator) -> int:
        """A random record of the same source and canvas."""
        chosen = self._cells[self._turns[step][0]][source]
        return int(chosen[rng.integers(len(chosen))])

    def padding(self, sources: Sequence, short_sides: Sequence[int], max_size: int) -> dict[str, float] | None:
        """Estimated share of pixels that are padding: `canvases` as they are, `square` on one that holds them all.

        Returns: None where a source does not state its sizes.
        """
        if not all(hasattr(source, "image_size") for source in sources):
            return None
        side = max(max(canvas) for canvas in self.canvases)
        shown, own, square = 0.0, 0.0, 0.0
        for canvas, cell, parts in zip(self.canvases, self._cells, self._parts):
            for (source, chosen), part in zip(cell.items(), parts):
                some = np.linspace(0, len(chosen) - 1, min(len(chosen), _SAMPLE)).astype(int)
                valid = np.mean([[math.prod(image_ops.resized_size(size, short_side, max_size, canvas))
                                  for short_side in short_sides]
                                 for size in (sources[source].image_size(int(chosen[k])) for k in some)])
                shown, own, square = shown + part * valid, own + part * math.prod(canvas), square + part * side**2
        return {"canvases": 1 - shown / own, "square": 1 - shown / square}


def by_canvas(source, canvases: Sequence[tuple[int, int]], short_side: int, max_size: int,
              least: float = 0) -> list[np.ndarray]:
    """Sorts the records of a source by the canvas of least area that holds them, see `image_ops.smallest_canvas`.

    Args:
      least: a canvas with fewer records gives them to the others.
    Returns: for each canvas the indices of its records, ascending.
    """
    if len(canvases) == 1:
        return [range(len(source))]
    if not hasattr(source, "image_size"):
        nearest = min(range(len(canvases)), key=lambda k: (abs(math.log(canvases[k][0] / canvases[k][1])),
                                                           -math.prod(canvases[k])))
        return [range(len(source)) if place == nearest else () for place in range(len(canvases))]
    allowed = list(range(len(canvases)))

    sizes, size_of = _distinct_sizes(source)

    def choose(size):
        best = image_ops.smallest_canvas(size, short_side, max_size, [canvases[place] for place in allowed])
        return next(place for place in allowed if canvases[place] == best)
    place_of = np.array([choose(size) for size in sizes], np.uint8)
    records = np.bincount(size_of, minlength=len(sizes))       # of each size
    while len(allowed) > 1:
        counts = np.bincount(place_of, records, minlength=len(canvases))
        rare = min((place for place in allowed if counts[place]), key=lambda place: counts[place], default=None)
        if rare is None or counts[rare] >= least:
            break
        allowed.remove(rare)
        for index in np.flatnonzero(place_of == rare):
            place_of[index] = choose(sizes[index])
    found = place_of[size_of]
    return [np.flatnonzero(found == place).astype(np.uint32) for place in range(len(canvases))]


def _distinct_sizes(source):
    """[(height, width)] that occur, and of each record the place of its own among them, int [n]."""
    if hasattr(source, "image_sizes"):
        height, width = np.asarray(source.image_sizes, np.int64).T
        found, size_of = np.unique(height << 32 | width, return_inverse=True)
        return [(int(size >> 32), int(size & 0xFFFFFFFF)) for size in found], size_of
    places = {}
    size_of = np.fromiter((places.setdefault(tuple(source.image_size(index)), len(places))
                           for index in range(len(source))), np.int64, len(source))
    return list(places), size_of
