#!/usr/bin/env bash
# What tpu_vm.sh starts on each host of a TPU slice, from the copy of this project that it brought there.
#   bash launch/tpu_host.sh setup | run [flags of glipv2_jax.main] | state | log | last | stop
#   NFS          of setup: address:/share of a file server (Filestore), mounted at /mnt/glipv2
#   NFS_OPTIONS  of that mount (default: vers=4.1; a server that has version 3 alone: vers=3,nolock, as it keeps the lock
#                of a machine that is gone, and the run would wait for it)
#   SETUP        of setup: one more command, e.g. another mount
#   RESTARTS     of run: starts again after failures in a row (default: 10)
# The program is a systemd unit, so that it outlives the connection and is told when the machine goes.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
unit=glipv2_jax
stopped=$root/.stopped             # there: the run was told to stop, and is not started before tpu_vm.sh removes this
export EXTRAS=tpu

setup() {
  if [[ -z ${NFS:-} ]]; then
    echo "tpu_host.sh: NFS is not set: nothing is mounted at /mnt/glipv2; --workdir needs a folder that all hosts share" >&2
  elif ! mountpoint --quiet /mnt/glipv2; then
    sudo apt-get -qq install -y nfs-common >&2
    sudo mkdir -p /mnt/glipv2
    sudo mount -t nfs -o "${NFS_OPTIONS:-vers=4.1}" "$NFS" /mnt/glipv2
    sudo chmod 1777 /mnt/glipv2
  fi
  # Images of TPU VMs come with a Python that may be too old; uv, a package of pip, brings a newer one.
  if [[ -z ${PYTHON:-} ]] && ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python3 -m pip install --quiet --user uv >&2
    python3 -m uv python install --quiet 3.12 >&2
    PYTHON=$(python3 -m uv python find 3.12)
    export PYTHON
  fi
  bash "$root/launch/install.sh"
  if [[ -n ${SETUP:-} ]]; then
    bash -c "$SETUP"
  fi
}

# running, finished, failed, stopped or none.
state() {
  local active
  active=$(systemctl show "$unit" --property=ActiveState --value)
  case "$active $(systemctl show "$unit" --property=SubState --value)" in
    "active exited") echo finished ;;
    active* | activating* | deactivating*) echo running ;;
    *) if [[ -e $stopped ]]; then echo stopped; elif [[ $active == failed ]]; then echo failed; else echo none; fi ;;
  esac
}

run() {
  local python
  if [[ $(state) == running ]]; then
    echo "already running"
    return
  fi
  if [[ -e $stopped ]]; then
    echo "not started: it was told to stop"
    return
  fi
  # What an earlier run has left; without one, there is nothing to stop.
  sudo systemctl stop "$unit" 2>/dev/null || true
  sudo systemctl reset-failed "$unit" 2>/dev/null || true
  python=$(bash "$root/launch/install.sh")
  # 75 is a stop that was asked for, 143 one while the program was starting. KillMode=mixed: the supervisor alone is
  # told, and tells the program.
  sudo systemd-run --quiet --unit="$unit" --uid="$(id -u)" --gid="$(id -g)" --working-directory="$root" \
    --setenv=HOME="$HOME" --property=RemainAfterExit=yes --property="SuccessExitStatus=75 143" \
    --property=KillMode=mixed --property=TimeoutStopSec=120 \
    "$python" "$root/launch/supervise.py" --restarts="${RESTARTS:-10}" -- "$python" -m glipv2_jax.main "$@"
}

case ${1:-} in
  setup) setup ;;
  run) run "${@:2}" ;;
  state) echo "state: $(state)" ;;
  log) exec journalctl --unit="$unit" --output=cat --lines=100 --follow ;;
  last) journalctl --unit="$unit" --output=cat --lines=40 --no-pager ;;
  stop)
    touch "$stopped"
    if [[ $(systemctl show "$unit" --property=ActiveState --value) != inactive ]]; then
      sudo systemctl stop "$unit"
    fi
    ;;
  *)
    echo "tpu_host.sh: found '${1:-}', expected setup, run, state, log, last or stop" >&2
    exit 2
    ;;
esac
