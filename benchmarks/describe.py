"""Captions a second on this machine: decoding with caches, greedy and with beams, beside a whole forward pass for every word.

    python -m benchmarks.describe --variant=glipv2_nano --size=128x128 --words=20 --batches=1,8

Weights are random and the end of a text is banned, so that every caption has all its words; time does not depend on what they are.
Image features are computed once in all three; compilation is apart.
"""
import argparse
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.forward import measure
from configs import common
from glipv2_jax import sharding
from glipv2_jax.models.config import VARIANTS
from glipv2_jax.models.glipv2 import GLIPv2, init_params
from glipv2_jax.predictor import Predictor
from input_pipeline.tokenizer import Tokenizer


class Endless:
    """What `Predictor.write` asks of a tokenizer, with an end that it never writes."""

    def __init__(self, tokenizer, vocab_size):
        self.vocab_size, self.cls_id, self.sep_id = vocab_size, tokenizer.cls_id, tokenizer.sep_id
        self.pad_id = self.unk_id = self.mask_id = tokenizer.sep_id


def uncached(model, max_tokens, words, start_id, end_id):
    """(params, levels) → [B, words] int32: greedy, each word by a forward pass over the whole text, in one program."""
    def write(params, levels):
        batch, causal = len(levels[0]), jnp.ones(len(levels[0]), bool)
        apply = lambda *args, method: model.apply({"params": params}, *args, method=method)

        def step(position, ids):
            mask = jnp.broadcast_to(jnp.arange(max_tokens) <= position, (batch, max_tokens))
            read = apply(ids, mask, False, causal, method="encode_text")
            places = jnp.full((batch, 1), position)
            logits = apply(levels, read, mask, places, False, causal, method="predict").mlm_logits[:, 0]
            return ids.at[:, position + 1].set(logits.at[:, end_id].set(-jnp.inf).argmax(-1).astype(jnp.int32))
        ids = jnp.zeros((batch, max_tokens), jnp.int32).at[:, 0].set(start_id)
        return jax.lax.fori_loop(0, words, step, ids)[:, 1:words + 1]
    return jax.jit(write)


def run(variant, size, batch, words, beams, repeats, dtype):
    """(rows of (way, first call, median seconds), share of words that the two greedy ways agree on)."""
    model = GLIPv2(VARIANTS[variant], dtype=dtype)
    config, mesh = model.config.text_encoder, sharding.make_mesh(1, devices=jax.devices()[:1])
    tokenizer = Endless(Tokenizer(), config.vocab_size)
    predictor = Predictor(model, mesh, common.get_config().eval)
    predictor.params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    image = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    inputs = {"image": image, "image_size": np.tile(np.int32(size), (batch, 1))}
    levels, *times = measure(predictor.encode_image, (inputs,), repeats)
    rows = [("image features", *times)]
    max_tokens = config.max_positions if config.kind == "clip" else words + 1
    whole, *times = measure(uncached(model, max_tokens, words, tokenizer.cls_id, tokenizer.sep_id), (predictor.params, levels), repeats)
    rows.append(("greedy, whole forward passes", *times))
    for count in (1, beams):
        written, *times = measure(
            lambda count=count: predictor.write(levels, tokenizer, max_words=words, beams=count), (), repeats)
        rows.append((f"caches, {count} beams" if count > 1 else "caches, greedy", *times))
        if count == 1:
            same = float((np.asarray(written.token_ids) == np.asarray(whole)).mean())
    return rows, same


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--variant", default="glipv2_nano", choices=sorted(name for name, c in VARIANTS.items() if c.mlm_head))
    parser.add_argument("--size", default="128x128", help="height x width")
    parser.add_argument("--batches", default="1,8", help="images at a time, several with commas")
    parser.add_argument("--words", type=int, default=20)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args(arguments)
    console = Console(width=140)
    console.print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}, "
                  f"{time.strftime('%Y-%m-%d')}; {args.variant}, {args.dtype}, {args.size}, {args.words} words a caption")
    for batch in map(int, args.batches.split(",")):
        rows, same = run(args.variant, tuple(map(int, args.size.split("x"))), batch, args.words, args.beams, args.repeats,
                         jnp.dtype(args.dtype))
        table = Table("", "seconds", "words/s", "images/s with features", "first call", title=f"{batch} images at a time")
        features = rows[0][2]
        for way, first, median in rows:
            speed = (f"{batch * args.words / median:.0f}", f"{batch / (features + median):.2f}") if way != "image features" else ("", "")
            table.add_row(way, f"{median:.4f}", *speed, f"{first:.1f} s")
        console.print(table)
        console.print(f"both greedy ways agree on {same:.1%} of the words")


if __name__ == "__main__":
    main()
