"""What every test shares: where the reference numbers are, full float32 precision, and the options --slow and --accelerator."""
import atexit
import contextlib
import functools
import importlib.util
import json
import logging
import os
import pathlib
import shutil
import sys
import tempfile

# Before jax is imported. A process that pytest-xdist has started does not see the options, and has what the first one has set.
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
# Comparisons to 1e-5 are stated for the CPU. An accelerator is held to them too, with products in full float32.
if "--accelerator" not in sys.argv and not _IS_WORKER:
    os.environ["JAX_PLATFORMS"] = "cpu"
if not {"--slow", "--accelerator"} & set(sys.argv) and not _IS_WORKER:
    # Most of the time goes into compiling tiny programs, and LLVM's optimizer is half of that. Full sizes need it.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Many tests, and the programs that they start, build the same small models anew: only the first compiles them. Each process of
# pytest-xdist has a folder of its own, as entries are not written in one piece.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ or _IS_WORKER:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="glipv2_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import numpy as np
import pytest

jax.config.update("jax_default_matmul_precision", "highest")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow (full-size cases)")
    parser.addoption("--accelerator", action="store_true", help="run on the GPU or TPU that JAX finds, not on the CPU")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="full-size case: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


def find_reference_dir():
    """Directory of reference numbers: $GLIPV2_REFERENCE, else ../shared/reference, else tests/reference."""
    named = os.environ.get("GLIPV2_REFERENCE")
    if named:
        path = pathlib.Path(named)
        if not path.is_dir():
            raise pytest.UsageError(f"GLIPV2_REFERENCE={named}: no such directory")
        return path
    beside = REPOSITORY.parent / "shared" / "reference"
    return beside if beside.is_dir() else REPOSITORY / "tests" / "reference"


@pytest.fixture(scope="session")
def reference_dir():
    return find_reference_dir()


@pytest.fixture(scope="session")
def shared_data():
    """Function of a path: where that small real data set lies, ../shared/data or the part of it that is in tests/data.

    A path that neither holds skips the test and says so.
    """
    def find(path):
        for folder in (REPOSITORY.parent / "shared" / "data", REPOSITORY / "tests" / "data"):
            if (folder / path).exists():
                return folder / path
        pytest.skip(f"no shared data {path}")
    return find


@pytest.fixture(scope="session")
def load_reference(reference_dir):
    """Function of a file name: dict of arrays from an .npz, parsed content of a .json.

    A file that the directory does not hold skips the test and says so.
    """
    def load(name):
        path = reference_dir / name
        if not path.exists():
            pytest.skip(f"{reference_dir} holds no {name}")
        if path.suffix == ".json":
            return json.loads(path.read_text())
        with np.load(path) as arrays:
            return {key: arrays[key] for key in arrays.files}
    return load


@pytest.fixture(scope="session")
def reference_weights(reference_dir):
    """The recipe module weights.py of the reference directory: make, make_all, make_image, ..."""
    spec = importlib.util.spec_from_file_location("reference_weights", reference_dir / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compilations(caplog):
    """Function that gives a context manager: list of what JAX compiles within it, whoever asks for it."""
    @contextlib.contextmanager
    def listened():
        found = []
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
            yield found
            found += [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()]
    return listened


@pytest.fixture(scope="session")
def detector():
    """Detector with a tiny model of fresh weights and strong words, so that scores differ between classes and places."""
    from configs import common
    from glipv2_jax.models.config import model_config
    from glipv2_jax.models.glipv2 import GLIPv2, init_params
    from glipv2_jax.predict import Detector
    from input_pipeline.tokenizer import Tokenizer
    from tests.test_models import TINY
    tokenizer = Tokenizer(literal=True)
    config = model_config("glipv2_t", TINY | {"text_encoder": TINY["text_encoder"] | {
        "vocab_size": tokenizer.vocab_size, "max_positions": 64}})
    model = GLIPv2(config)
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype), params)
    params["grounding"]["bias0"] = params["grounding"]["bias0"] * 0
    settings = common.get_config().eval
    settings.canvases, settings.short_side, settings.max_size = ((64, 96), (96, 64)), 64, 96
    settings.max_detections = 20
    return Detector(model, params, tokenizer, settings, max_tokens=64)


@pytest.fixture
def gpu_compiler():
    """Fails a test, asked for with --slow, where JAX's CUDA plugin, which compiles without a GPU, is not installed."""
    if not any(name.startswith("jax-cuda") for name in (each.name for each in importlib.metadata.distributions())):
        pytest.fail("needs the GPU compiler: VENV=.venv-gpu EXTRAS=test,plan-gpu bash launch/test.sh --slow -m gpu_compiler, or leave it out: "
                    "-m 'not gpu_compiler'")


@pytest.fixture
def compiler():
    """Fails a test, asked for with --slow, where the TPU compiler, which runs without TPUs, is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.fail("needs the TPU compiler: EXTRAS=test,plan bash launch/test.sh --slow, or leave it out: -m 'not tpu_compiler'")
    # Its own warnings, of a machine without TPUs, go to C++'s standard error.
    logging.getLogger("jax").setLevel(logging.ERROR)
