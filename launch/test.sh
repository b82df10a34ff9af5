#!/usr/bin/env bash
# Fresh machine -> installed project -> its tests.
#   bash launch/test.sh [arguments of pytest]
#   WORKERS                processes that share the test files, each of some 5 GB at last; 0: this one alone (default: 2; 0 with
#                          --slow, whose full sizes fill a machine's memory, and with --accelerator, which one process has)
#   VENV, EXTRAS, PYTHON   see install.sh
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/launch/install.sh")
cd "$root"
workers=2
[[ " $* " != *" --slow "* && " $* " != *" --accelerator "* ]] || workers=0
exec "$python" -m pytest --numprocesses="${WORKERS:-$workers}" --dist=loadfile "$@"
