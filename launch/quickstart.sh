#!/usr/bin/env bash
# Fresh machine -> installed project -> the main job on built-in data, on whatever device JAX finds.
#   bash launch/quickstart.sh [flags of glipv2_jax.main]
#   WORKDIR  folder of the run (default: runs/quickstart); the same one resumes
#   VENV, EXTRAS, PYTHON: see install.sh
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/launch/install.sh")
exec "$python" -m glipv2_jax.main --config="$root/configs/quickstart.py" --workdir="${WORKDIR:-runs/quickstart}" "$@"
