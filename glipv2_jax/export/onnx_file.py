"""A model as an ONNX file: everything but the choice of boxes.

The graph ends before non-maximum suppression, which ONNX programs have under names of their own. Its batch size is
fixed.
"""
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.detection import box_coder
from glipv2_jax.detection import boxes as box_ops
from glipv2_jax.detection.anchors import anchors, level_shapes
from glipv2_jax.detection.postprocess import class_scores
from glipv2_jax.export.archive import distance, input_shapes, portable

INPUTS = ("image", "image_size", "token_ids", "token_mask", "token_to_label")
OUTPUTS = ("boxes", "scores")


def write(detector, path, canvas, max_tokens, batch_size=1):
    """Writes the file: (image [B, H, W, 3] uint8, image_size [B, 2] int32, token_ids [B, T] int32, token_mask [B, T]
    bool, token_to_label [C, T] bool) → boxes [B, A, 4] xyxy pixels of the canvas, scores [B, A, C].

    A score is the square root of class probability × centerness, as everywhere in this project.

    Args:
      detector: Detector. path: new file. canvas: (H, W) pixels, multiples of 32.
      max_tokens: T, at most the detector's. C is half of it.
    Raises: ModuleNotFoundError without the extra `onnx`.
    """
    import jax2onnx
    with warnings.catch_warnings():
        # Its tracing of sums asks for float64, and gets float32.
        warnings.filterwarnings("ignore", message="Explicitly requested dtype")
        jax2onnx.to_onnx(_forward(detector), input_shapes(batch_size, canvas, max_tokens), input_names=INPUTS,
                         output_names=OUTPUTS, model_name="glipv2", return_mode="file", output_path=str(path))


def compare(detector, path, inputs):
    """How far onnxruntime's answer on the CPU is from the model's own.

    Args:
      inputs: [image, image_size, token_ids, token_mask, token_to_label], as `write` says.
    Returns: str to print.
    """
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3             # its warnings are about constants that it removes
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(OUTPUTS, dict(zip(INPUTS, inputs)))
    expected = jax.device_get(jax.jit(_forward(detector))(*inputs))
    above = int((np.asarray(expected[1]) > 0.5).sum())
    return (f"batch {len(inputs[0])}, onnxruntime {onnxruntime.__version__}: {above} scores above 0.5, "
            + ", ".join(f"{key} within {distance(*pair):.1e}" for key, *pair in zip(OUTPUTS, found, expected)))


def _forward(detector):
    """Inputs → (boxes, scores) of every anchor."""
    model = portable(detector.model)

    def forward(image, image_size, token_ids, token_mask, token_to_label):
        outputs = model.apply({"params": detector.params}, image, image_size, token_ids, token_mask)
        places = jnp.asarray(anchors(level_shapes(*image.shape[1:3])))
        boxes = jax.vmap(lambda deltas, size: box_ops.clip(box_coder.decode(deltas, places), size))(
            outputs.box_deltas, image_size)
        scores = jax.vmap(lambda logits: class_scores(logits, token_to_label, detector.settings.aggregation))(
            outputs.alignment_logits)
        return boxes, jnp.sqrt(scores * jax.nn.sigmoid(outputs.centerness.astype(jnp.float32))[..., None])
    return forward
