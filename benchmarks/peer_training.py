"""The training step of transformers' GroundingDINO-T under torch, as `benchmarks.train --peer` measures it.

Random weights, nothing is downloaded. As in its paper: losses of every decoder layer and of the encoder's proposals, each with a
Hungarian matching, gradients clipped, AdamW. What stands outside of matrix products stays float32, as autocast does it. Activations are kept:
transformers' model has no checkpoints of its layers. Its deformable attention is the one in plain torch, as kernels would be downloaded.
"""
import time

import numpy as np
import torch

from benchmarks.peers import grounding_dino, normalised
from benchmarks.train import noise_boxes

START, END, STOP = 101, 102, 1012      # of BERT's vocabulary: [CLS], [SEP] and the full stop behind each name


def step_speed(device, size, images, tokens, boxes, dtype, compiled, steps):
    """Measures it.

    Args:
      device: "cuda" or "cpu".
      size: (height, width). images: of a step. tokens: of a text, names of one word each with a full stop behind.
      boxes: of an image. dtype: "float32" or "bfloat16", by autocast.
      compiled: through torch.compile, with its graph broken where the matching needs numpy.
      steps: how many are timed.
    Returns: dict with the names of `benchmarks.train.step_speed`, or the reason why there is nothing to measure as `failed`.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return {"failed": f"torch {torch.__version__} sees no GPU"}
    if device == "cuda":
        torch.set_float32_matmul_precision("high")         # what XLA does by default with float32 on the same GPU
    rng = np.random.default_rng(0)
    try:
        model = grounding_dino(size, auxiliary_loss=True).to(device).train()
    except ValueError as error:                            # images too small for its queries
        return {"failed": str(error)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=device == "cuda")
    forward = torch.compile(model) if compiled else model

    pixels = torch.from_numpy(rng.integers(0, 256, (images, *size, 3), dtype=np.uint8)).to(device)
    ids = rng.integers(2000, 20_000, (images, tokens))
    ids[:, 2::2], ids[:, 0], ids[:, -2:] = STOP, START, (STOP, END)
    ids, names = torch.from_numpy(ids).to(device), (tokens - 2) // 2
    corners = noise_boxes(rng, images, boxes, size) / np.array(size[::-1] * 2, np.float32)
    centers = np.concatenate([(corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]], axis=-1)
    labels = [{"class_labels": (torch.arange(boxes) % names).to(device), "boxes": torch.from_numpy(of_image).to(device)} for of_image in centers]

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(normalised(pixels), ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        return loss.detach()

    times = []
    for _ in range(2 + steps):
        started = time.perf_counter()
        loss = step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    seconds, loss = float(np.median(times[2:])), float(loss)
    return {"compile_seconds": max(times[0] - seconds, 0.0), "step_seconds": seconds, "images_per_second": images / seconds,
            "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None, "loss": loss, "finite": bool(np.isfinite(loss))}
