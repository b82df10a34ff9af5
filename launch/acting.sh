#!/usr/bin/env bash
# Sourced by the scripts that act on a cluster: checked variables, and commands that --dry-run only prints.
set -euo pipefail

dry_run=
exec 3>&2
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  exec 3>&1
  shift
elif [[ " $* " == *" --dry-run "* ]]; then
  echo "$(basename "$0"): found --dry-run behind other arguments, expected it first" >&2
  exit 2
fi

# need VARIABLE "what it is": ends with a message unless the variable is set.
need() {
  if [[ -z ${!1:-} ]]; then
    echo "$(basename "$0"): $1 is not set: $2. For example: $1=… bash launch/$(basename "$0") …" >&2
    exit 2
  fi
}

# act COMMAND…: prints the command as a shell would read it, and runs it unless this is a dry run.
act() {
  local line
  printf -v line ' %q' "$@"
  echo "+$line" >&3
  [[ -n $dry_run ]] || "$@"
}
