"""What a compiled program does, read off its text: collectives, and bytes that travel between memory and the chip, by part.

XLA's own cost analysis counts the body of a loop once and charges a slice of an array with the whole of it. Here a body is counted as
often as it runs, a slice or a gather for what it takes but at most for its whole operand, an update in place or a scatter for what it
changes, and arrays that the compiler keeps on the chip (memory space 1 of a TPU) not at all. Of a condition the branch of "true" is
counted, in this project the usual case.
"""
import collections
import math
import re

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
# Name and renamings of what exists already, or whose body is counted instead.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all", "iota",
         "partition-id", "replica-id", "copy-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "async-done",
         "async-start", "async-update", "slice-done", "dynamic-slice-done", "optimization-barrier"}
_CALLS = r"(body|calls|to_apply|branch_computations|true_computation|called_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)"
_SLICES = {"dynamic-slice", "gather", "slice"}

Instruction = collections.namedtuple("Instruction", "name kind shapes operands text")


class Program:
    """The computations of a program and how often each runs.

    Args:
      text: HLO, as a compiled program prints it.
    """

    def __init__(self, text):
        self.computations, self._times, self._fused, entry, current = {}, collections.Counter(), set(), None, None
        self._going_on = set()                    # bodies of fusions beside which a collective goes on, and in which it ends
        for line in text.splitlines():
            if not line.startswith(" "):
                header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
                current = self.computations.setdefault(header[2], {}) if header else None
                entry = header[2] if header and header[1] else entry
            elif current is not None and (instruction := _instruction(line)):
                current[instruction.name] = instruction
        if entry:
            self._visit(entry, 1)

    def _visit(self, computation, count):
        self._times[computation] += count
        for instruction in self.computations[computation].values():
            trips = self._trips(instruction) if instruction.kind == "while" else 1
            for key, names in re.findall(_CALLS, instruction.text):
                # What a reduction applies to each pair of elements does nothing by itself.
                if key == "to_apply" and instruction.kind != "call":
                    continue
                called = re.findall(r"[\w.\-]+", names)
                for name in called[-1:] if key == "branch_computations" else called:
                    if name in self.computations:
                        if instruction.kind == "fusion" or computation in self._fused:
                            self._fused.add(name)
                        if name.startswith("async_collective_fusion") or instruction.name.startswith("async-collective-done"):
                            self._going_on.add(name)
                        self._visit(name, count * trips)

    def _trips(self, loop):
        """How often a loop runs: as the compiler states it, else the one number that its condition compares with, else once."""
        stated = re.search(r"known_trip_count[^0-9]*(\d+)", loop.text)
        condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
        limits = [int(number) for inner in self.computations.get(condition[1], {}).values()
                  for number in re.findall(r"= s32\[\]\S* constant\((\d+)\)", inner.text)]
        return int(stated[1]) if stated else limits[0] if len(limits) == 1 else 1

    def collectives(self):
        """dict of kind → [number, bytes of their results on one device].

        What a TPU's compiler spreads over the fusions that run meanwhile stands in each of them; it counts where it starts.
        """
        found = {}
        for computation, times in self._times.items():
            for _, kind, shapes, _, _ in () if computation in self._going_on else self.computations[computation].values():
                base = kind.removesuffix("-start")
                if base in COLLECTIVES:
                    # A start, but for a sum's, gives what it was given besides its results, and scalars to wait for.
                    if kind != base and base != "all-reduce":
                        arrays = [shape for shape in shapes if shape[1]]
                        shapes = arrays[len(arrays) // 2:]
                    size = sum(map(_size, shapes))
                    number, total = found.get(base, (0, 0))
                    found[base] = [number + times, total + times * size]
        return found

    def traffic(self, part_of):
        """Bytes of memory that are read and written.

        Args:
          part_of: function of an instruction's origin, such as "jit(train_step)/GLIPv2/fpn/…" → name of a part.
        Returns: Counter of part → bytes on one device.
        """
        moved = collections.Counter()
        for computation, times in self._times.items():
            instructions = self.computations[computation]
            for instruction in () if computation in self._fused else instructions.values():
                origin = re.search(r'op_name="([^"]*)"', instruction.text)
                moved[part_of(origin[1] if origin else "")] += times * self._moved(instruction, instructions)
        return moved

    def _moved(self, instruction, instructions):
        kind = instruction.kind
        if kind in _FREE:
            return 0
        shapes = [instructions[name].shapes if name in instructions else [] for name in instruction.operands]
        reads, writes = [sum(map(_in_memory, of_operand)) for of_operand in shapes], sum(map(_in_memory, instruction.shapes))
        result = sum(map(_size, instruction.shapes))
        if kind.endswith("-start"):                   # gives its operand again, its result, and what waits for it
            operand, result = (instruction.shapes * 2)[:2]
            return (_size(result) if kind.removesuffix("-start") in _SLICES else _in_memory(operand)) + _in_memory(result)
        # A library's last result is its scratch.
        if kind == "custom-call" and re.search(r'custom_call_target="__cu(blas|dnn)', instruction.text):
            writes = sum(_in_memory(shape) for shape in instruction.shapes if shape[0] != "s8")
        if kind in _SLICES and reads:
            return min(reads[0], result) + sum(reads[1:]) + writes
        if kind == "dynamic-update-slice" and len(reads) > 1:
            return reads[1] + min(writes, sum(map(_size, shapes[1])))
        if kind == "scatter" and len(reads) == 3:            # adds its updates to what is there
            return 2 * min(writes, sum(map(_size, shapes[2]))) + reads[1] + reads[2]
        if kind == "fusion" and (called := re.search(r"calls=%?([\w.\-]+)", instruction.text)):
            body = self.computations[called[1]]
            # A collective that is spread over fusions hands its arrays from one to the next; none of them moves those.
            handed = {shape[:2] for inner in body.values() if inner.kind in COLLECTIVES
                      for shape in (*inner.shapes, *(shape for name in inner.operands if name in body for shape in body[name].shapes))}
            if handed:
                reads, writes = [sum(_in_memory(shape) for shape in of if shape[:2] not in handed) for of in shapes], sum(
                    _in_memory(shape) for shape in instruction.shapes if shape[:2] not in handed)
            return self._moved_by_fusion(body, reads, writes)
        return sum(reads) + writes

    @staticmethod
    def _moved_by_fusion(body, reads, writes):
        """Its operands and results, of which slices take, and updates in place and scatters change, only a part."""
        users, update, part = collections.defaultdict(list), None, None
        for inner in body.values():
            for name in inner.operands:
                users[name].append(inner)
            if inner.text.lstrip().startswith("ROOT"):
                root = inner
                while root.kind in ("bitcast", "copy") and root.operands and root.operands[0] in body:
                    root = body[root.operands[0]]
                if root.kind == "dynamic-update-slice" or root.kind == "scatter" and len(root.operands) == 3:
                    update, part = root, root.operands[1 if root.kind == "dynamic-update-slice" else 2]
        for inner in body.values():
            number = re.search(r"parameter\((\d+)\)", inner.text) if inner.kind == "parameter" else None
            if number and int(number[1]) < len(reads):
                i, by = int(number[1]), users[inner.name]
                if by and all(user.kind in _SLICES and user.operands[0] == inner.name for user in by):
                    reads[i] = min(reads[i], sum(sum(map(_size, user.shapes)) for user in by))
                if update and update.operands[0] == inner.name:
                    reads[i] = 0
        if update and part in body:
            writes = min(writes, sum(map(_size, body[part].shapes))) * (2 if update.kind == "scatter" else 1)
        return sum(reads) + writes


def _instruction(line):
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|[^ ]+) ([\w\-]+)\((.*)", line)
    if not match:
        return None
    name, kinds, kind, rest = match.groups()
    inside, depth = rest, 1
    for i, letter in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if not depth:
            inside = rest[:i]
            break
    return Instruction(name, kind, re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", kinds), re.findall(r"%([\w.\-]+)", inside), line)


def _size(shape):
    """Bytes of one (type, sizes, layout)."""
    kind, sizes, _ = shape
    return _BYTES.get(kind, 0) * math.prod(int(n) for n in sizes.split(",") if n)


def _in_memory(shape):
    return 0 if "S(1)" in shape[2] else _size(shape)
