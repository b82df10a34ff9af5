"""The small part of pickle that a torch file of weights is written in: read without running it, and written.

A pickle is a program for a stack machine, and two of its instructions, REDUCE and BUILD, call what the file
names. Here they are not calls: a name from the file becomes a `_Name`, a mere string with a type, and REDUCE
knows the four combinations of names and arguments that stand for tensors. Python's own unpickler is not used.
"""
import pickletools
import struct
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}
_DTYPES = {name: getattr(np, name) for name in ("float64", "float32", "float16", "int64", "int32", "int16",
                                                "int8", "uint64", "uint32", "uint16", "uint8")}
_DTYPES |= {"bfloat16": ml_dtypes.bfloat16, "bool": np.bool_}
_STORAGE_OF = {np.dtype(dtype): name for name, dtype in _STORAGES.items()}

_ORDERED_DICT = ("collections", "OrderedDict")
_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_TENSOR_WITH_DTYPE = ("torch._utils", "_rebuild_tensor_v3")
_PARAMETER = ("torch._utils", "_rebuild_parameter")
_UNTYPED = ("torch.storage", "UntypedStorage")
_ALLOWED = ({_ORDERED_DICT, _TENSOR, _TENSOR_WITH_DTYPE, _PARAMETER, _UNTYPED}
            | {("torch", name) for name in (*_STORAGES, *_DTYPES)})
_MARK = object()


class _Name(NamedTuple):
    """A name that the file mentions. Never looked up."""
    module: str
    name: str


class Storage(NamedTuple):
    """A block of elements: `key` is the record that holds it. dtype None: bytes, the tensor says of what."""
    key: str
    dtype: Any
    numel: int


class TensorView(NamedTuple):
    """A tensor as the file describes it: a strided view into a storage. Strides and offset count elements."""
    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(data):
    """The object that a pickle describes.

    Args:
      data: bytes.
    Returns: (nested dicts, lists, tuples, strings, numbers, None and `TensorView`; list of its TensorViews).
    Raises: ValueError at the first instruction, name or argument that weights have no need of. Nothing was
      executed.
    """
    machine = _Machine()
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name == "STOP":
                break
            step = _STEPS.get(opcode.name)
            if step is None:
                raise ValueError(f"found the pickle instruction {opcode.name} at byte {position}, expected "
                                 "only those that describe tensors and dicts of them; nothing was executed")
            step(machine, argument)
    except (IndexError, KeyError, TypeError, struct.error, UnicodeError) as error:
        raise ValueError(f"found a malformed pickle ({type(error).__name__}: {error}), expected one as "
                         "torch.save writes it") from error
    if len(machine.stack) != 1:
        raise ValueError(f"found a pickle that leaves {len(machine.stack)} objects, expected one")
    return machine.stack[0], machine.tensors


class _Machine:
    """A pickle's stack, its memo, and the tensors met so far."""

    def __init__(self):
        self.stack, self.memo, self.tensors = [], {}, []

    def since_mark(self):
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def top(self, kind):
        if type(self.stack[-1]) is not kind:
            found = type(self.stack[-1]).__name__
            raise ValueError(f"found a {found} in the pickle, expected a {kind.__name__}")
        return self.stack[-1]


def _push(machine, argument):
    machine.stack.append(argument)


def _constant(make):
    return lambda machine, argument: machine.stack.append(make())


def _tuple_of(count):
    def step(machine, argument):
        items = [machine.stack.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))
    return step


def _tuple(machine, argument):
    machine.stack.append(tuple(machine.since_mark()))


def _store(machine, argument):
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


def _fetch(machine, argument):
    machine.stack.append(machine.memo[argument])


def _append(machine, argument):
    item = machine.stack.pop()
    machine.top(list).append(item)


def _appends(machine, argument):
    items = machine.since_mark()
    machine.top(list).extend(items)


def _set_item(machine, argument):
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.top(dict)[_key(key)] = value


def _set_items(machine, argument):
    items = machine.since_mark()
    target = machine.top(dict)
    if len(items) % 2:
        raise ValueError("found a dict key without a value in the pickle")
    for key, value in zip(items[::2], items[1::2]):
        target[_key(key)] = value


def _key(key):
    if type(key) not in (str, int, float, bool, type(None)):
        raise ValueError(f"found a dict key of type {type(key).__name__}, expected a string or a number")
    return key


def _global(machine, argument):
    if argument is None:                         # the two parts lie on the stack
        name, module = machine.stack.pop(), machine.stack.pop()
    else:
        module, name = argument.split(" ", 1)
    if type(module) is not str or type(name) is not str or (module, name) not in _ALLOWED:
        raise ValueError(f"found a reference to {_shown(module)}.{_shown(name)}, expected only tensors, "
                         "storages and OrderedDict; nothing was executed")
    machine.stack.append(_Name(module, name))


def _build(machine, argument):
    machine.stack.pop()                 # attributes of a state_dict: "_metadata", versions of torch's layers
    machine.top(dict)


def _persistent(machine, argument):
    found = machine.stack.pop()
    if type(found) is not tuple or len(found) != 5 or found[0] != "storage" or type(found[1]) is not _Name:
        raise ValueError("found a reference to something outside of the pickle that is no storage")
    _, kind, key, _, numel = found
    if type(key) is not str or not _is_count(numel):
        raise ValueError(f"found a storage {_shown(key)} of {_shown(numel)} elements, expected a name and a "
                         "count")
    if kind != _UNTYPED and kind.name not in _STORAGES:
        raise ValueError(f"found {kind.module}.{kind.name} as the type of a storage")
    machine.stack.append(Storage(key, None if kind == _UNTYPED else np.dtype(_STORAGES[kind.name]), numel))


def _reduce(machine, argument):
    arguments, name = machine.stack.pop(), machine.stack.pop()
    count = len(arguments) if type(name) is _Name and type(arguments) is tuple else -1
    if name == _ORDERED_DICT and count == 0:
        machine.stack.append({})
    elif name == _PARAMETER and count == 3 and type(arguments[0]) is TensorView:
        machine.stack.append(arguments[0])
    elif name == _TENSOR and count in (6, 7) or name == _TENSOR_WITH_DTYPE and count in (7, 8):
        tensor = _tensor(*arguments[:4], arguments[6] if name == _TENSOR_WITH_DTYPE else None)
        machine.tensors.append(tensor)
        machine.stack.append(tensor)
    else:
        raise ValueError("found a call in the pickle that does not make a tensor or an empty OrderedDict; "
                         "nothing was executed")


def _tensor(storage, offset, shape, strides, dtype):
    if type(storage) is not Storage:
        raise ValueError(f"found a tensor over a {type(storage).__name__}, expected a storage")
    where = f"a tensor over storage {_shown(storage.key)}"
    if dtype is not None:
        if type(dtype) is not _Name or dtype.module != "torch" or dtype.name not in _DTYPES:
            raise ValueError(f"found {where} whose dtype is no known one")
        dtype = np.dtype(_DTYPES[dtype.name])
    if (dtype is None) == (storage.dtype is None):
        raise ValueError(f"found {where} whose dtype is said twice or never")
    for what, numbers in (("shape", shape), ("strides", strides), ("offset", (offset,))):
        if type(numbers) is not tuple or len(numbers) > 16 or not all(map(_is_count, numbers)):
            raise ValueError(f"found {where} with the {what} {_shown(numbers)}, expected numbers from 0 on, "
                             "at most 16")
    if len(shape) != len(strides):
        raise ValueError(f"found {where} of {len(shape)} sizes and {len(strides)} strides, expected as many "
                         "of both")
    return TensorView(storage, dtype or storage.dtype, offset, shape, strides)


def _is_count(number):
    return type(number) is int and 0 <= number < 2**60


def _shown(value):
    """A short form of what a file holds. Not its repr: a few bytes can describe one of any length."""
    if type(value) is tuple and len(value) <= 16:
        return "(" + ", ".join(_shown(x) if type(x) is int else type(x).__name__ for x in value) + ")"
    return repr(value)[:80] if type(value) in (str, int) else f"a {type(value).__name__}"


_STEPS = {
    "PROTO": lambda machine, argument: None, "FRAME": lambda machine, argument: None,
    "MARK": _constant(lambda: _MARK), "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True), "NEWFALSE": _constant(lambda: False),
    "EMPTY_DICT": _constant(dict), "EMPTY_LIST": _constant(list), "EMPTY_TUPLE": _constant(tuple),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
                    _push),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _store),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _fetch),
    "TUPLE": _tuple, "TUPLE1": _tuple_of(1), "TUPLE2": _tuple_of(2), "TUPLE3": _tuple_of(3),
    "APPEND": _append, "APPENDS": _appends, "SETITEM": _set_item, "SETITEMS": _set_items,
    "GLOBAL": _global, "STACK_GLOBAL": _global, "BINPERSID": _persistent, "REDUCE": _reduce, "BUILD": _build,
}


def write_pickle(tree):
    """Protocol 2, as torch.save writes it.

    Args:
      tree: nested dicts, lists, strings, numbers, bools, None and numpy arrays.
    Returns: (bytes, list of arrays: record i holds the elements of array i in C order). Equal array objects
      share one.
    Raises: ValueError for anything else.
    """
    out, arrays = bytearray(b"\x80\x02"), {}
    _emit(tree, out, arrays)
    return bytes(out + b"."), [array for _, array in arrays.values()]


def _emit(value, out, arrays):
    if type(value) is dict:
        out += b"}("
        for key, item in value.items():
            _emit(key, out, arrays)
            _emit(item, out, arrays)
        out += b"u"
    elif type(value) is list:
        out += b"]("
        for item in value:
            _emit(item, out, arrays)
        out += b"e"
    elif isinstance(value, np.ndarray):
        _emit_tensor(value, out, arrays)
    elif value is None or type(value) is bool:
        out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
    elif type(value) is str:
        text = value.encode()
        out += b"X" + struct.pack("<I", len(text)) + text
    elif type(value) is int:
        out += _emit_int(value)
    elif type(value) is float:
        out += b"G" + struct.pack(">d", value)
    else:
        raise ValueError(f"a {type(value).__name__} cannot be written to a torch file")


def _emit_tensor(array, out, arrays):
    if array.dtype not in _STORAGE_OF:
        raise ValueError(f"an array of {array.dtype} cannot be written to a torch file, expected one of "
                         f"{sorted(dtype.name for dtype in _STORAGE_OF)}")
    # The array is kept beside its number: an id is only unique while its object lives.
    number, _ = arrays.setdefault(id(array), (str(len(arrays)), array))
    strides = np.cumprod((1, *array.shape[:0:-1]))[::-1].tolist() if array.ndim else []
    out += _emit_name(_TENSOR) + b"(("
    _emit("storage", out, arrays)
    out += _emit_name(("torch", _STORAGE_OF[array.dtype]))
    for text in (number, "cpu"):
        _emit(text, out, arrays)
    out += _emit_int(array.size) + b"tQ" + _emit_int(0)
    for numbers in (array.shape, strides):
        out += b"(" + b"".join(map(_emit_int, numbers)) + b"t"
    out += b"\x89" + _emit_name(_ORDERED_DICT) + b")RtR"


def _emit_name(name):
    return "c{}\n{}\n".format(*name).encode()


def _emit_int(number):
    if -2**31 <= number < 2**31:
        return b"J" + struct.pack("<i", number)
    data = int(number).to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data
