#!/usr/bin/env bash
# Installs this project into a virtual environment, unless that has been done, and prints the environment's python.
# Needs no compiler.
#   VENV     folder of the environment   (default: .venv beside setup.cfg)
#   EXTRAS   extras of setup.cfg         (default: test; "test,cuda" on a machine with an NVIDIA GPU)
#   PYTHON   interpreter to make it with (default: the first of python3.12, 3.11, 3.13, python3 that is new enough)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
[[ $venv == /* ]] || venv=$PWD/$venv
extras=${EXTRAS:-test}

# The environment is up to date as long as what it was made from has not changed.
stamp=$venv/.glipv2_jax
made_from="$root [$extras] $(cat "$root/setup.cfg" "$root/pyproject.toml" | cksum)"
if [[ -f $stamp && $(<"$stamp") == "$made_from" ]]; then
  echo "$venv/bin/python"
  exit
fi

candidates=(python3.12 python3.11 python3.13 python3)
if [[ -n ${PYTHON:-} ]]; then
  candidates=("$PYTHON")
fi
python=
seen=
for name in "${candidates[@]}"; do
  if version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then
    seen+=" $name ($version)"
    if [[ ${version%%.*} -eq 3 && ${version#*.} -ge 11 ]]; then
      python=$name
      break
    fi
  fi
done
if [[ -z $python ]]; then
  echo "glipv2_jax needs Python 3.11 or newer; found:${seen:- none}." >&2
  echo "Install one (Debian, Ubuntu: apt install python3.11 python3.11-venv) or name one: PYTHON=/path/to/python3.11" >&2
  exit 1
fi

# Asks for pip: where ensurepip is missing, venv leaves an environment without it.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  echo "Making $venv with $python ($version)" >&2
  if ! "$python" -m venv "$venv" >&2; then
    echo "$python cannot make virtual environments (Debian, Ubuntu: apt install python$version-venv)." >&2
    exit 1
  fi
fi
echo "Installing glipv2_jax[$extras] into $venv: a few minutes the first time" >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --prefer-binary -e "${root}[${extras}]" >&2
echo "$made_from" >"$stamp"
echo "$venv/bin/python"
