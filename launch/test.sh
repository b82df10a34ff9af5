#!/usr/bin/env bash
# Fresh machine -> installed project -> its tests.
#   bash launch/test.sh [arguments of pytest]
#   VENV, EXTRAS, PYTHON: see install.sh
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/launch/install.sh")
cd "$root"
exec "$python" -m pytest "$@"
