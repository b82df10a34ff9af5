"""A model as one file that runs where only JAX is installed.

The file is a zip archive: the forward pass from image and tokens to detections as `jax.export` writes it, for any batch
size and several platforms; the parameters; the vocabulary; and what a caller has to know. Parameters stay outside of
the program, since constants of a gigabyte would be copied with every compilation.
"""
import dataclasses
import io
import json
import zipfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from glipv2_jax.predictor import decode

PLATFORMS = ("cpu", "cuda", "tpu")


def input_shapes(batch, canvas, max_tokens):
    """Shapes of image, image_size, token_ids, token_mask and token_to_label."""
    num_classes = max_tokens // 2                              # a word and a separator each
    return [jax.ShapeDtypeStruct(*shape) for shape in (
        ((batch, *canvas, 3), jnp.uint8), ((batch, 2), jnp.int32), ((batch, max_tokens), jnp.int32),
        ((batch, max_tokens), jnp.bool_), ((num_classes, max_tokens), jnp.bool_))]


def write(detector, path, canvas, max_tokens, platforms=PLATFORMS):
    """Writes the archive.

    Its function takes (params, image [b, H, W, 3] uint8, image_size [b, 2] int32, token_ids [b, T] int32, token_mask
    [b, T] bool, token_to_label [C, T] bool) and returns what `detection.postprocess` returns, in pixels of the canvas.
    C is as many classes as T tokens can hold.

    Args:
      detector: Detector. path: new file. canvas: (H, W) pixels, multiples of 32.
      max_tokens: T, at most the detector's.
      platforms: of "cpu", "cuda", "rocm", "tpu".
    """
    params = traverse_util.flatten_dict(detector.params, sep="/")
    (batch,) = jax.export.symbolic_shape("b")
    abstract = [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params),
                *input_shapes(batch, canvas, max_tokens)]
    exported = jax.export.export(jax.jit(_forward(detector)), platforms=tuple(platforms))(*abstract)
    settings = detector.settings
    about = {"canvas": canvas, "tokens": max_tokens, "classes": abstract[-1].shape[0],
             "short_side": settings.short_side, "max_size": settings.max_size, "platforms": list(platforms),
             "jax": jax.__version__,
             "calling_convention_version": exported.calling_convention_version}
    weights = io.BytesIO()
    np.savez(weights, **jax.device_get(params))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("about.json", json.dumps(about, indent=1))
        archive.writestr("forward.jax_export", bytes(exported.serialize()), compress_type=zipfile.ZIP_DEFLATED)
        archive.writestr("vocab.txt", detector.tokenizer.vocabulary.read_bytes(), compress_type=zipfile.ZIP_DEFLATED)
        archive.writestr("params.npz", weights.getbuffer())


def read(path):
    """(about dict, function, params) of an archive.

    The function takes what `write` says; it runs code, so read only files that you trust as you trust a program.
    """
    with zipfile.ZipFile(path) as archive:
        exported = jax.export.deserialize(bytearray(archive.read("forward.jax_export")))
        params = dict(np.load(io.BytesIO(archive.read("params.npz"))))
        return json.loads(archive.read("about.json")), exported.call, params


def compare(detector, path, inputs):
    """How far the archive's detections are from the model's own.

    Args:
      inputs: [image, image_size, token_ids, token_mask, token_to_label], as `write` says.
    Returns: str to print.
    """
    _, call, params = read(path)
    own_params = traverse_util.flatten_dict(detector.params, sep="/")
    expected = jax.device_get(jax.jit(_forward(detector))(own_params, *inputs))
    found = jax.device_get(call(params, *inputs))
    same = np.array_equal(found["labels"], expected["labels"])
    return (f"batch {len(inputs[0])}: {int(expected['mask'].sum())} detections, "
            f"classes {'equal' if same else 'NOT equal'}, "
            + ", ".join(f"{key} within {distance(found[key], expected[key]):.1e}" for key in ("boxes", "scores")))


def distance(found, expected):
    """‖found − expected‖ / ‖expected‖."""
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)


def portable(model):
    """The same model without kernels that only one platform has."""
    return model.clone(config=dataclasses.replace(model.config, kernels="xla"))


def _forward(detector):
    """(params by path, inputs) → detections."""
    model = portable(detector.model)

    def forward(params, image, image_size, token_ids, token_mask, token_to_label):
        variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
        outputs = model.apply(variables, image, image_size, token_ids, token_mask)
        raw = outputs.alignment_logits, outputs.box_deltas, outputs.centerness
        return decode(detector.settings, raw, token_to_label, image_size, image.shape[1:3])
    return forward
