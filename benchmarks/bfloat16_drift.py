"""How far bfloat16 computation drifts from float32 on the reference cases: ‖a − b‖ / ‖b‖ of every output.

    python -m benchmarks.bfloat16_drift --reference=tests/reference [--cases=tiny]
"""
import argparse

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from glipv2_jax.models.glipv2 import GLIPv2
from tests import reference_models


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--reference", default="tests/reference", help="directory of reference numbers")
    parser.add_argument("--cases", default="", help="names with commas; default: every model case")
    args = parser.parse_args()
    names = args.cases.split(",") if args.cases else reference_models.case_names(args.reference)
    table = Table("case", "box deltas", "centerness", "alignment logits", title="bfloat16 against float32, ‖a−b‖/‖b‖")
    for name in names:
        model, params = reference_models.model_and_params(args.reference, name)
        case = reference_models.load_runs(args.reference, name)[0]
        inputs = reference_models.inputs(args.reference, case)
        with jax.default_matmul_precision("highest"):      # an accelerator's own float32 products are of fewer bits
            exact = jax.jit(GLIPv2(model.config, dtype=jnp.float32).apply)({"params": params}, *inputs)
        rounded = jax.jit(GLIPv2(model.config, dtype=jnp.bfloat16).apply)({"params": params}, *inputs)
        drift = [np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b)
                 for a, b in ((getattr(rounded, k), np.asarray(getattr(exact, k)))
                              for k in ("box_deltas", "centerness", "alignment_logits"))]
        table.add_row(name, *(f"{x:.1e}" for x in drift))
    Console().print(table)


if __name__ == "__main__":
    main()
