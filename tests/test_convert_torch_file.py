"""The restricted reader of torch's zip format: what it reads, and that hostile files are refused."""
import collections
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from glipv2_jax.convert.sources import open_weights, read_source
from glipv2_jax.convert.torch_file import TorchFile, write_torch
from glipv2_jax.convert.torch_pickle import write_pickle

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
TREE = {
    "model": {
        "float": WEIGHT, "transposed": WEIGHT.T, "tied": WEIGHT, "scalar": np.array(3, np.float32),
        "half": np.array([1.5, -2], np.float16), "bfloat16": np.array([[0.25], [3]], ml_dtypes.bfloat16),
        "double": np.array([1e-300]), "long": np.array([[-2**40, 5]]), "int": np.array([7], np.int32),
        "short": np.array([-7], np.int16), "char": np.array([-1], np.int8), "byte": np.array([255], np.uint8),
        "bool": np.array([True, False]), "empty": np.zeros((0, 3), np.float32)},
    "optimizer": {"state": {0: {"step": 12, "exp_avg": np.ones(3, np.float32)}}, "lr": [1e-4, 2.5],
                  "amsgrad": False},
    "iteration": 2**40, "negative": -3, "nothing": None, "text": "naïve",
}


def assert_same(found, expected, file):
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key], file)
    elif isinstance(expected, np.ndarray):
        value = file.read(found)
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
        assert value.tobytes() == expected.tobytes()
        assert value.flags.c_contiguous
    else:
        assert type(found) is type(expected) and found == expected


def test_what_is_written_is_read(tmp_path):
    write_torch(tmp_path / "file.pth", TREE)
    with TorchFile(tmp_path / "file.pth") as file:
        assert_same(file.content, TREE, file)
        assert file.content["model"]["float"].storage == file.content["model"]["tied"].storage
    write_torch(tmp_path / "again.pth", TREE)
    assert (tmp_path / "file.pth").read_bytes() == (tmp_path / "again.pth").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["again.pth", "file.pth"]
    with pytest.raises(ValueError, match="complex64 cannot be written"):
        write_torch(tmp_path / "complex.pth", {"x": np.zeros(2, np.complex64)})
    with pytest.raises(ValueError, match="a set cannot be written"):
        write_torch(tmp_path / "set.pth", {"x": set()})


# ---- files made by hand

def global_(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    if -2**31 <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key="0", numel=6, kind="FloatStorage"):
    return b"(" + text("storage") + global_("torch", kind) + text(key) + text("cpu") + number(numel) + b"tQ"


def tensor(shape=(2, 3), strides=(3, 1), offset=0, over=None):
    return (global_("torch._utils", "_rebuild_tensor_v2") + b"(" + (over or storage()) + number(offset)
            + numbers(shape) + numbers(strides) + b"\x89" + global_("collections", "OrderedDict") + b")RtR")


def state(value, key="weight"):
    return b"\x80\x02}" + text(key) + value + b"s."


GOOD = state(tensor())


@pytest.fixture
def build(tmp_path):
    """Function of a pickle, and of records that replace or add to a good file's: the path of a file."""
    def make(data=GOOD, records=(), root="archive", compression=zipfile.ZIP_STORED):
        path = tmp_path / "built.pth"
        entries = {f"{root}/data.pkl": data, f"{root}/data/0": WEIGHT.tobytes(), f"{root}/version": b"3\n"}
        entries |= dict(records)
        with zipfile.ZipFile(path, "w", compression) as archive:
            for entry, content in entries.items():
                if content is not None:
                    archive.writestr(entry, content)
        return path
    return make


def refused(path, message):
    with pytest.raises(ValueError, match=message) as error:
        TorchFile(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 1000


def test_a_file_made_by_hand_is_read(build):
    with TorchFile(build()) as file:
        np.testing.assert_array_equal(file.read(file.content["weight"]), WEIGHT)
    for view, expected in ((tensor((3, 2), (1, 3)), WEIGHT.T), (tensor((2,), (2,), 1), WEIGHT.ravel()[1:4:2]),
                           (tensor((2, 1), (3, 0), 2), WEIGHT[:, 2:]), (tensor((), (), 5), WEIGHT[1, 2])):
        with TorchFile(build(state(view))) as file:
            np.testing.assert_array_equal(file.read(file.content["weight"]), expected)
    # a state_dict of torch's: an OrderedDict with attributes
    ordered = (b"\x80\x02" + global_("collections", "OrderedDict") + b")R(" + text("weight") + tensor()
               + b"u}" + text("_metadata") + global_("collections", "OrderedDict") + b")Rsb.")
    parameter = (global_("torch._utils", "_rebuild_parameter") + b"(" + tensor() + b"\x88"
                 + global_("collections", "OrderedDict") + b")RtR")
    untyped = (b"(" + text("storage") + global_("torch.storage", "UntypedStorage") + text("0") + text("cpu")
               + number(24) + b"tQ")
    with_dtype = (global_("torch._utils", "_rebuild_tensor_v3") + b"(" + untyped + number(0) + numbers((2, 3))
                  + numbers((3, 1)) + b"\x89" + global_("collections", "OrderedDict") + b")R"
                  + global_("torch", "float32") + b"tR")
    for data in (ordered, state(parameter), state(with_dtype)):
        with TorchFile(build(data)) as file:
            np.testing.assert_array_equal(file.read(file.content["weight"]), WEIGHT)


def test_python_pickles_are_understood(build):
    content = {"epoch": 3, "list": [1.5, (1, "a"), [None, True]],
               "nested": collections.OrderedDict(a=2**70, b=-1)}
    for protocol in (2, 4, 5):
        with TorchFile(build(pickle.dumps(content, protocol))) as file:
            assert file.content == {**content, "nested": {"a": 2**70, "b": -1}}


class Evil:
    """Its pickle says: call os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_runs_a_program_is_refused(protocol, build, tmp_path):
    witness = tmp_path / "executed"
    data = pickle.dumps({"weight": Evil(f"touch {witness}")}, protocol)
    refused(build(data), "nothing was executed")
    assert not witness.exists()


@pytest.mark.parametrize("data, message", [
    (state(global_("builtins", "eval") + text("1") + b"\x85R"), r"reference to 'builtins'\.'eval'"),
    (state(global_("torch", "load") + text("x") + b"\x85R"), r"reference to 'torch'\.'load'"),
    (state(global_("torch", "_utils._rebuild_tensor_v2")), "reference to"),
    (state(global_("collections", "OrderedDict") + b"]\x85R"), "found a call in the pickle"),
    (state(global_("torch", "FloatStorage") + b")R"), "found a call"),
    (state(b"(" + text("torch") + text("FloatStorage") + b"tQ"), "outside of the pickle"),
    (state(text("outside") + b"Q"), "outside of the pickle"),
    (state(b"(" + text("os") + text("system") + b"i"), "pickle instruction|malformed|pickle"),
    (state(b"\x82\x01"), "pickle instruction EXT1"),
    (state(global_("collections", "OrderedDict") + b")\x81"), "pickle instruction NEWOBJ"),
    (state(global_("collections", "OrderedDict") + b"}b"), "found a _Name in the pickle, expected a dict"),
    (b"\x80\x02}" + b")" + number(1) + b"s.", "dict key of type tuple"),
    (state(b"h\x09"), "malformed pickle"),
    (b"\x80\x02.", "leaves 0 objects"),
    (b"\x80\x02}}.", "leaves 2 objects"),
    (b"\x80\x02}", "pickle exhausted before seeing STOP"),
    (b"", "pickle exhausted before seeing STOP"),
    (b"\x80\x02X\xff\xff\xff\x7fa.", "expected .* bytes|not enough|malformed"),
    (b"\x80\x02" + b"e.", "malformed pickle"),
    (b"\x80\x02(e.", "malformed pickle"),
    (state(b"}(" + text("a") + b"u"), "a dict key without a value"),
    (state(tensor(strides=(0, 1))), r"shape \(2, 3\) and strides \(0, 1\), which meets elements more than"),
    (state(tensor((2, 3), (1, 1))), "more than once"),
    (state(tensor((2**30, 2**30), (0, 0))), "more than once"),
    (state(tensor((3, 3), (3, 1))), "reaches to element 9; the storage has 6"),
    (state(tensor(offset=1)), "reaches to element 7; the storage has 6"),
    (state(tensor((0,), (1,), 7)), "reaches to element 7"),
    (state(tensor((-1, 3))), r"shape \(-1, 3\), expected numbers from 0 on"),
    (state(tensor((2, 3), (-3, 1))), "strides"),
    (state(tensor(offset=-1)), "offset"),
    (state(tensor((2**63, 1), (1, 1))), "shape"),
    (state(tensor((1,) * 17, (1,) * 17)), "at most 16"),
    (state(tensor((2, 3), (1,))), "2 sizes and 1 strides"),
    (state(tensor(over=storage(numel=5))), "found 24 bytes, expected 20 bytes for 5 elements"),
    (state(tensor(over=storage(numel=2**40))), "found 24 bytes"),
    (state(tensor(over=storage(kind="DoubleStorage"))), "found 24 bytes, expected 48"),
    (state(tensor(over=storage("7"))), "storage 7: found no record"),
    (state(tensor(over=storage("../../../etc/passwd"))), "found a storage named '../../../etc/passwd'"),
    (state(tensor(over=storage("/etc/passwd"))), "found a storage named"),
    (state(tensor(over=storage(kind="float32"))), "torch.float32 as the type of a storage"),
    (state(tensor(over=b"}")), "a tensor over a dict"),
])
def test_malformed_descriptions_are_refused(data, message, build):
    refused(build(data), message)


def test_a_description_that_multiplies_itself_stays_small(build):
    """Sixty tuples, each of twice the former, print or hash as 2⁶⁰ entries; nobody here does either."""
    laughs = b"\x80\x02)q\x00" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))
    refused(build(laughs + b"."), "leaves 61 objects")
    top = b"h" + bytes([60])
    for use, message in ((b"}" + top + number(1) + b"s.", "dict key of type tuple"),
                         (top + top + b"\x93.", "found a reference to"),
                         (global_("torch._utils", "_rebuild_tensor_v2") + b"(" + storage() + number(0)
                          + top + top + b"\x89NtR.", "with the shape")):
        refused(build(laughs + use), message)
    # itself inside of itself, and a hundred thousand lists inside of each other
    for data in (b"\x80\x02}q\x00" + text("weight") + b"h\x00s.", state(b"]" * 100_000 + b"a" * 99_999)):
        with TorchFile(build(data)) as file, pytest.raises(ValueError, match="expected weights"):
            read_source(file)


def test_zip_tricks_are_refused(build, tmp_path):
    refused(build(compression=zipfile.ZIP_DEFLATED), "that unpack to")
    bomb = {"archive/data/0": bytes(50_000_000)}
    path = build(records=bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(path, "expected no compression")
    for entry in ("archive/../../evil", "../evil", "/etc/passwd", "archive//data/1", "C:/windows",
                  "archive\\data", "evil"):
        refused(build(records={entry: b"x"}), "found a record named|folders at the top")
    refused(build(records={"other/data/1": b"x"}), "found 2 folders at the top")
    refused(build(records={"archive/data.pkl": None}), "no record 'data.pkl'")
    refused(build(records={"archive/byteorder": b"big"}), "byte order")
    refused(build(records={"archive/data.pkl": bytes(9 * 2**20)}), "found 9437184 bytes, expected at most")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(build(), "a") as archive:
        archive.writestr("archive/data/0", WEIGHT.tobytes())
    refused(tmp_path / "built.pth", "found two records")


def patched(path, signature, offset, value):
    """Overwrites a 4-byte field of every zip header with this signature whose record is data/0."""
    data, start = bytearray(path.read_bytes()), -1
    while (start := data.find(signature, start + 1)) >= 0:
        if b"archive/data/0" in data[start:start + 64]:
            data[start + offset:start + offset + 4] = struct.pack("<I", value)
    path.write_bytes(data)
    return path


def test_headers_that_lie_are_refused(build, tmp_path):
    path = patched(patched(build(), b"PK\x01\x02", 24, 2**31), b"PK\x01\x02", 20, 2**31)
    refused(path, "records of .* in all, more than the .* of the file")
    refused(patched(build(), b"PK\x01\x02", 24, 2**31), "that unpack to 2147483648")
    data = bytearray(build().read_bytes())
    at = data.find(WEIGHT.tobytes())
    data[at] ^= 1
    (tmp_path / "built.pth").write_bytes(data)
    with (TorchFile(tmp_path / "built.pth") as file,
          pytest.raises(ValueError, match="data/0: Bad CRC-32.*damaged")):
        file.read(file.content["weight"])


def test_random_damage_is_a_value_error(build, tmp_path):
    rng, whole = np.random.default_rng(0), build().read_bytes()
    path, refusals = tmp_path / "damaged.pth", 0
    for _ in range(400):
        data = bytearray(whole)
        for position in rng.integers(0, len(data), 3):
            data[position] = rng.integers(256)
        path.write_bytes(data[:rng.integers(len(data))] if rng.random() < 0.2 else data)
        try:
            with TorchFile(path) as file:
                for found in file.content.values():
                    file.read(found)
        except ValueError:
            refusals += 1
    assert refusals > 300


def test_other_formats_are_named(tmp_path, build):
    path = tmp_path / "file.pth"
    evil, whole = pickle.dumps(Evil(f"touch {tmp_path / 'executed'}")), build().read_bytes()
    legacy = pickle.dumps(0x1950a86a20f9469cfc6c, protocol=2) + pickle.dumps({"weight": 1}, protocol=2)
    for content, message in ((legacy, "the pickle format of PyTorch before 1.6.*safetensors"),
                             (evil, "found a pickle, expected a zip"), (b"", "found another format"),
                             (bytes(257) + b"ustar" + bytes(300), "found a tar archive"),
                             (whole[:-30], "cut short"), (whole[:100], "cut short"),
                             (b"PK\x03\x04", "cut short")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_weights(path)
    assert not (tmp_path / "executed").exists()


def test_safetensors_are_read_and_checked(tmp_path):
    from safetensors.numpy import save_file
    path = tmp_path / "any.name"
    weights = {"a": WEIGHT, "b": np.ones(2, ml_dtypes.bfloat16), "c": np.ones(2, np.float16)}
    save_file(weights, path)
    with open_weights(path) as file:
        assert_same(file.content, weights, file)
    whole = path.read_bytes()
    header = whole[8:8 + struct.unpack("<Q", whole[:8])[0]]
    for content in (whole[:-1], whole[:20], struct.pack("<Q", 2**31) + whole[8:],
                    whole.replace(b'"shape":[2,3]', b'"shape":[9,3]'),
                    whole.replace(header, header.replace(b'"data_offsets":[0,', b'"data_offsets":[1,'))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected a whole safetensors file"):
            open_weights(path)


def test_reading_imports_no_torch_and_unpickles_nothing(tmp_path):
    write_torch(tmp_path / "file.pth", TREE)
    code = ("import sys, pickle; sys.modules['torch'] = None; "
            "pickle.loads = pickle.load = pickle.Unpickler = None; "
            "from glipv2_jax.convert.torch_file import TorchFile; file = TorchFile(sys.argv[1]); "
            "assert file.read(file.content['model']['float']).sum() == 15")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "file.pth")], check=True)


def test_pickle_numbers_the_records():
    data, arrays = write_pickle({"a": WEIGHT, "b": WEIGHT, "c": WEIGHT.copy()})
    assert len(arrays) == 2 and arrays[0] is WEIGHT and data.count(b"_rebuild_tensor_v2") == 3


def test_torch_itself_agrees(tmp_path):
    torch = pytest.importorskip("torch")
    write_torch(tmp_path / "ours.pth", TREE)
    theirs = torch.load(tmp_path / "ours.pth", weights_only=True)
    for key, value in TREE["model"].items():
        found = theirs["model"][key]
        assert tuple(found.shape) == value.shape
        assert found.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == value.tobytes(), key
    assert theirs["model"]["float"].data_ptr() == theirs["model"]["tied"].data_ptr()
    assert theirs["optimizer"]["lr"] == [1e-4, 2.5] and theirs["iteration"] == 2**40

    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    base = torch.arange(24.)
    saved = {"model": layer.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 5,
             "model_ema": {"weight": layer[0].weight, "view": base.reshape(4, 6)[1:3, ::2].t(), "tied": base,
                           "bfloat16": base.bfloat16(), "half": base.half(), "long": base.long(),
                           "uint16": base.to(torch.uint16), "scalar": base[3], "empty": base[:0]}}
    for options in ({}, {"pickle_protocol": 4}):
        torch.save(saved, tmp_path / "theirs.pth", **options)
        with TorchFile(tmp_path / "theirs.pth") as file:
            for entry in ("model", "model_ema"):
                assert list(file.content[entry]) == list(saved[entry])
                for key, value in saved[entry].items():
                    found, flat = file.read(file.content[entry][key]), value.detach().contiguous().reshape(-1)
                    assert found.shape == tuple(value.shape), key
                    assert found.tobytes() == flat.view(torch.uint8).numpy().tobytes(), key
            moments = file.content["optimizer"]["state"][0]["exp_avg"]
            expected = optimizer.state_dict()["state"][0]["exp_avg"]
            np.testing.assert_array_equal(file.read(moments), expected.numpy())
    torch.save(saved, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="before 1.6"):
        TorchFile(tmp_path / "legacy.pth")
    torch.save({"weight": base.expand(5, 24)}, tmp_path / "expanded.pth")
    with pytest.raises(ValueError, match="more than once"):
        TorchFile(tmp_path / "expanded.pth")
