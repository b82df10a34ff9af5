"""The network against the reference implementation: every stored tensor and the final detections.

Bound for a tensor: largest difference over the tensor's standard deviation within 10 times the float32 noise that the
fixture measured for it. Sizes beyond the tiny model run with --slow.
"""
import json

import jax
import numpy as np
import pytest

from tests import reference_models
from tests.conftest import find_reference_dir

MARGIN = 10
REFERENCE = find_reference_dir()


def _cases():
    for name in reference_models.case_names(REFERENCE):
        meta = json.loads((REFERENCE / f"{name}.json").read_text())
        if "losses" in meta:
            continue                                  # the training case has a test of its own
        pixels = max(i["height"] * i["width"] for i in meta["images"])
        yield pytest.param(name, marks=[pytest.mark.slow] if pixels > 50_000 else [])


def _noise(meta, key):
    """Measured noise over std of a tensor, of another case of the same model if this one has none."""
    base = key.removesuffix(".sample")
    tables = [meta.get("noise_fp32_vs_fp64", {})]
    for path in sorted(REFERENCE.glob("*.json")):
        other = json.loads(path.read_text())
        if isinstance(other, dict) and other.get("model") == meta["model"]:
            tables.append(other.get("noise_fp32_vs_fp64", {}))
    # A branch inside a layer has no figure of its own: the layer's output stands for it.
    parts = base.split(".")
    aliases = [base, ".".join(parts[:3] + parts[-1:])]
    for alias in aliases:
        for table in tables:
            if alias in table:
                return table[alias]["max_abs_over_std"], table[alias]["max_abs"]
    raise KeyError(f"no measured noise for {key}")


def test_reference_directory_holds_forward_cases():
    assert list(_cases()), f"{REFERENCE}: no model case to compare with"


@pytest.mark.parametrize("name", list(_cases()))
def test_reference_tensors_and_detections(name):
    model, params = reference_models.model_and_params(str(REFERENCE), name)
    for case in reference_models.load_runs(REFERENCE, name):
        image, size, token_ids, token_mask = reference_models.inputs(REFERENCE, case)
        found, outputs = reference_models.forward(model, params, image, size, token_ids, token_mask)
        _check_tensors(case, found)
        _check_detections(case, outputs, image.shape[1:3], size)


def _check_tensors(case, found):
    checked, failures = 0, []
    for key in case.arrays:
        base = key.removesuffix(".sample")
        if base not in found:
            continue
        ours, theirs = reference_models.stored_view(case, key, found[base])
        assert ours.shape == theirs.shape, f"{key}: shape {ours.shape}, expected {theirs.shape}"
        checked += 1
        if theirs.dtype.kind in "bi":
            if not np.array_equal(ours, theirs):
                failures.append(f"{key}: not equal")
            continue
        difference = np.abs(ours - theirs).max()
        noise, noise_absolute = _noise(case.meta, key)
        if difference > MARGIN * max(noise * theirs.std(), noise_absolute):
            failures.append(f"{key}: {difference / theirs.std():.1e} of std, noise {noise:.1e}")
    stored = [k for k in case.arrays if k.startswith(("swin.", "fpn.", "bert.", "head.", "out."))
              and not k.endswith((".stats", ".step"))]
    assert checked == len(stored), f"{case.name}: stored but not compared {set(stored) - set(found)}"
    assert not failures, f"{case.name} {case.run}:\n" + "\n".join(failures)


def _check_detections(case, outputs, canvas, size):
    from glipv2_jax.detection.anchors import anchors, level_shapes
    from glipv2_jax.detection.postprocess import postprocess
    shapes = level_shapes(*canvas)
    boxes = anchors(shapes)
    for i, level in enumerate(reference_models.LEVELS):
        if f"anchors.{level}" in case.arrays:
            start = sum(h * w for h, w in shapes[:i])
            np.testing.assert_array_equal(boxes[start:start + shapes[i][0] * shapes[i][1]], case.arrays[f"anchors.{level}"])
    labels = {int(k): v for k, v in case.run_meta["positive_map"].items()}
    token_to_label = np.zeros((max(labels), outputs.alignment_logits.shape[-1]), bool)
    for label, tokens in labels.items():
        token_to_label[label - 1, tokens] = True
    found = jax.jit(postprocess, static_argnames=("level_sizes",))(
        outputs.alignment_logits, outputs.box_deltas, outputs.centerness, boxes,
        level_sizes=tuple(h * w for h, w in shapes), token_to_label=token_to_label, image_size=size)
    found = jax.device_get(found)
    for i in range(len(size)):
        noise = [_noise(case.meta, f"det.{i}.{part}") if _has_noise(case, f"det.{i}.{part}") else
                 _noise(case.meta, f"det.0.{part}") for part in ("scores", "boxes")]
        keep = found["mask"][i]
        compare_detections(
            (found["boxes"][i][keep], found["scores"][i][keep], found["labels"][i][keep] + 1),
            tuple(case.arrays[f"det.{i}.{part}"] for part in ("boxes", "scores", "labels")),
            score_tolerance=MARGIN * noise[0][1], box_tolerance=MARGIN * noise[1][1])


def _has_noise(case, key):
    try:
        _noise(case.meta, key)
    except KeyError:
        return False
    return True


def compare_detections(ours, theirs, score_tolerance, box_tolerance):
    """Equal as sets: every detection has its partner of the same label, score and box within the tolerances.

    A detection may lack a partner only where the cut at the last kept score decides: its score is within the
    tolerance of the lowest score kept by the other side.
    """
    unmatched = list(range(len(ours[1])))
    missing = []
    for box, score, label in zip(*theirs):
        fits = [j for j in unmatched if ours[2][j] == label and abs(ours[1][j] - score) <= score_tolerance
                and np.abs(ours[0][j] - box).max() <= box_tolerance]
        if fits:
            unmatched.remove(fits[0])
        elif score - ours[1].min() > score_tolerance:
            missing.append((label, score, box))
    extra = [j for j in unmatched if ours[1][j] - theirs[1].min() > score_tolerance]
    assert not missing and not extra, f"missing {missing}, extra {[(ours[2][j], ours[1][j], ours[0][j]) for j in extra]}"
