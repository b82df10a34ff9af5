#!/usr/bin/env bash
# Fresh machine -> installed project -> its tests.
#   bash launch/test.sh [arguments of pytest]
#   WORKERS                processes that share the test files, each of some 5 GB at last (default: 2; 0: this one alone)
#   VENV, EXTRAS, PYTHON   see install.sh
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/launch/install.sh")
cd "$root"
exec "$python" -m pytest --numprocesses="${WORKERS:-2}" --dist=loadfile "$@"
