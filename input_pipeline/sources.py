"""Sources together: one table of class names for a run, and which record stands at a position.

What a source is, is written in `schema.py`. The order of training data is a pure function of (seed,
position): nothing is remembered, so a run resumes at any position on any number of hosts.
"""
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline.prompts import canonical_name
from input_pipeline.schema import NO_CLASS

_BLOCK = 4096                        # positions after which every source has had its exact share
_ROUNDS = 6
_MASK64 = (1 << 64) - 1


class ClassTable:
    """Global class ids: the place of a canonical name among the sorted canonical names of all sources.

    Ids of single data sets are never used: "dog" of one set and "Dog" of another are one class, and category
    17 of one is not category 17 of another.
    """

    def __init__(self, names: Iterable[str]):
        self.names = tuple(sorted({canonical_name(name) for name in names} - {""}))
        self._ids = {name: index for index, name in enumerate(self.names)}

    @classmethod
    def from_sources(cls, sources) -> "ClassTable":
        return cls(name for source in sources for name in source.class_names)

    def __len__(self) -> int:
        return len(self.names)

    def ids(self, names: Iterable[str]) -> np.ndarray:
        """int32 ids of class names; NO_CLASS for a name that leaves no text.

        Raises: ValueError on a name that no source had.
        """
        canonical = [canonical_name(name) for name in names]
        unknown = [name for name in canonical if name and name not in self._ids]
        if unknown:
            raise ValueError(f"class table: found unknown names {unknown[:5]}, expected names of its "
                             f"{len(self)} classes")
        return np.array([self._ids.get(name, NO_CLASS) for name in canonical], np.int32)


class Place(NamedTuple):
    """source: index of the source. record: index inside it."""
    source: int
    record: int


def mixture_weights(specs: Sequence[dict], sources: Sequence) -> list[float]:
    """The share of each source in the stream, in any unit.

    Either every source of a config states its `weight`, its share of the images that are drawn; or none does, and the
    share is its number of records, times `copies` where that is stated (the repeat factors of GLIP). Then detection,
    which the inter-image loss lives on, is raised to at least half.

    Raises: ValueError where some state a weight and others do not, or for copies that are not above 0.
    """
    stated = ["weight" in spec for spec in specs]
    if all(stated):
        return [spec["weight"] for spec in specs]
    if any(stated):
        raise ValueError(f"config.data.train[{stated.index(False)}]: found no 'weight', expected one for every source "
                         "or for none")
    for place, spec in enumerate(specs):
        if not spec.get("copies", 1) > 0:
            raise ValueError(f"config.data.train[{place}]: found copies {spec['copies']}, expected a number above 0")
    sizes = [len(source) * spec.get("copies", 1) for spec, source in zip(specs, sources)]
    detection = sum(size for size, source in zip(sizes, sources) if source.class_names)
    factor = max(1.0, (sum(sizes) - detection) / detection) if detection else 1.0
    return [size * factor if source.class_names else size for size, source in zip(sizes, sources)]


class Turns:
    """Whose turn it is at position p of an endless stream, and how many turns the same had before.

    Positions come in blocks of 4096. In each block everyone has the same number of turns (the weight, rounded to
    1/4096), shuffled over the block.

    Args:
      weights: shares of the stream, in any unit, all positive.
      seed: of the order.
    """

    def __init__(self, weights: Sequence[float], seed: int):
        total = float(sum(weights))
        if not (np.all(np.isfinite(weights)) and min(weights) > 0):
            raise ValueError(f"weights: found {list(weights)}, expected finite numbers above 0")
        ends = [round(_BLOCK * end / total) for end in itertools.accumulate(weights)]
        self.shares = np.diff([0, *ends])
        if not self.shares.all():
            raise ValueError(f"weights: found {list(weights)}, expected each at least 1/{_BLOCK} of the sum")
        self._seed = seed
        self._block = functools.lru_cache(maxsize=4)(self._lay_block)

    def __getitem__(self, position: int) -> tuple[int, int]:
        block, place = divmod(position, _BLOCK)
        owners, ranks = self._block(block)
        owner = int(owners[place])
        return owner, block * int(self.shares[owner]) + int(ranks[place])

    def _lay_block(self, block):
        """int [4096] each: whose each turn of a block is; how many turns before it in the block are the same's."""
        owners = np.repeat(np.arange(len(self.shares)), self.shares)
        owners = np.random.default_rng((self._seed, block)).permutation(owners)
        ranks = np.zeros(_BLOCK, np.int64)
        for owner, share in enumerate(self.shares):
            ranks[owners == owner] = np.arange(share)
        return owners, ranks


class Mixture:
    """Which record stands at position p of an endless stream over weighted sources.

    The sources take `Turns`. The k-th turn of a source reads its k-th record, in an order that is a new permutation
    for every epoch of that source: no record comes again before all others came.

    Args:
      lengths: records of each source.
      weights: shares of the stream, in any unit, all positive.
      seed: of both orders.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int):
        if not lengths or len(lengths) != len(weights):
            raise ValueError(f"weights: found {len(weights)} for {len(lengths)} sources, expected one each")
        if min(lengths) < 1:
            raise ValueError(f"sources: found lengths {list(lengths)}, expected at least one record in each")
        self._turns, self._lengths, self._seed = Turns(weights, seed), tuple(lengths), seed

    def __getitem__(self, position: int) -> Place:
        source, turn = self._turns[position]
        epoch, index = divmod(turn, self._lengths[source])
        return Place(source, shuffled(index, self._lengths[source], (self._seed, source, epoch)))


def shuffled(index: int, length: int, key: Sequence[int]) -> int:
    """Where a random permutation of range(length), chosen by `key`, sends `index`; nothing is stored.

    A Feistel network permutes the smallest 4^k ≥ length numbers; numbers at or above `length` walk on along
    their cycle until they are below it.
    """
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    state = 0
    for part in key:
        state = _mix(state ^ _mix(part & _MASK64))
    round_keys = [_mix(state + step) for step in range(_ROUNDS)]
    while True:
        left, right = index >> half_bits, index & half_mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & half_mask)
        index = left << half_bits | right
        if index < length:
            return index


def _mix(value: int) -> int:
    """A hash of 64 bits (the finaliser of splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK64
    return value ^ value >> 31
