#!/usr/bin/env bash
# The quickstart, trained six times longer, becomes the weights that come with the package: about an hour on 2 CPU cores.
#   WORKDIR  folder of the run (default: runs/built_in); the same one resumes
#   VENV, EXTRAS, PYTHON: see install.sh
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
workdir=${WORKDIR:-runs/built_in}
python=$(bash "$root/launch/install.sh")
"$python" -m glipv2_jax.main --config="$root/configs/quickstart.py" --workdir="$workdir" \
    --config.train.num_steps=8000 --config.train.ema_decay=0.999 --config.eval.ema=True "$@"
rm -rf "$root/glipv2_jax/weights/scenes"
exec "$python" -m glipv2_jax.cli convert "$workdir" --to=slim --ema --output="$root/glipv2_jax/weights/scenes"
