"""How large a model is, without making it."""
import functools

import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table

from glipv2_jax.models.config import VARIANTS
from glipv2_jax.models.glipv2 import GLIPv2, init_params

PARTS = {"image encoder": ("image_encoder",), "FPN": ("fpn",), "text encoder": ("text_encoder",),
         "fusion tower": ("fusion_", "text_layer_", "dyconv_"),
         "heads": ("localization", "grounding", "mlm", "contrastive", "prompt", "mask_head", "answers")}


def parameter_shapes(config):
    """Nested dict of ShapeDtypeStructs: the parameters of a ModelConfig."""
    return jax.eval_shape(functools.partial(init_params, GLIPv2(config)), jax.random.key(0))


def count_parameters(config):
    """dict of part → parameters, for the keys of `PARTS`. Their sum is the model's size."""
    shapes = parameter_shapes(config)
    return {part: sum(leaf.size for name in shapes if name.startswith(prefixes) for leaf in jax.tree.leaves(shapes[name]))
            for part, prefixes in PARTS.items()}


def print_table():
    """Prints every named model with the millions of parameters of its parts."""
    table = Table("model", *PARTS, "total", title="parameters, millions")
    for name, config in track(VARIANTS.items(), "tracing the models", console=Console(stderr=True), transient=True):
        counts = count_parameters(config)
        table.add_row(name, *(f"{n / 1e6:.1f}" for n in counts.values()), f"{sum(counts.values()) / 1e6:.1f}")
    Console().print(table)
