"""A checkpoint for prediction alone: a quarter of the bytes or less, to be passed on."""
import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax import encoded_words
from glipv2_jax.checkpoint import Checkpoints, load_params, read_about
from glipv2_jax.models.config import config_from_dict
from glipv2_jax.models.describe import parameter_shapes
from glipv2_jax.predict import Detector
from glipv2_jax.train_state import TrainState
from input_pipeline.answers import ANSWERS_FILE


def slim(directory, output, *, ema=False, words=None):
    """Writes a workdir that holds parameters in bfloat16, without optimizer and averages, and without the head of masked words
    where it has not learned to write captions.

    `Detector`, `init_from` and everything else that reads a workdir read it; parameters come back as float32.

    Args:
      directory: a workdir, of training or of `convert`.
      output: folder; must not hold checkpoints yet.
      ema: take the averaged parameters.
      words: class names; they are encoded, and kept in the place of text encoder and tuned prompt: `Detector` alone reads
        the result, and knows this one list.
    Returns: dict of path → array, as written.
    Raises: FileNotFoundError without a checkpoint; ValueError for an output that is in use, or words without a letter.
    """
    directory, output = pathlib.Path(directory), pathlib.Path(output)
    if (output / "checkpoints").exists():
        raise ValueError(f"{output}: found checkpoints there, expected a new folder")
    about = read_about(directory)
    config, run = config_from_dict(about["model"]), about["config"]
    place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                            parameter_shapes(config))
    params = dict(load_params(directory, abstract, ema=ema))
    writes = config.mlm_head and bool(run.get("loss", {}).get("caption_words"))
    left_out = {"mlm_head": writes} | ({"prompt_tokens": 0} if words is not None else {})
    for part in (*(() if writes else ("mlm",)), *(encoded_words.REPLACED if words is not None else ())):
        params.pop(part, None)
    params = jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16)), params)
    config = dataclasses.replace(config, **left_out)
    run["model"]["overrides"] = run["model"]["overrides"] | left_out

    output.mkdir(parents=True, exist_ok=True)
    if words is not None:
        encoded_words.write(output, Detector.from_pretrained(directory, ema=ema), words)
    checkpoints = Checkpoints(output)
    checkpoints.save(TrainState(np.int32(about["next_step"]), params, (), None, np.float32(0)), run, dataclasses.asdict(config))
    checkpoints.close()
    for name in ("vocab.txt", ANSWERS_FILE):
        if (directory / name).exists():
            shutil.copyfile(directory / name, output / name)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
