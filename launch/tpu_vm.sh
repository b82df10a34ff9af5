#!/usr/bin/env bash
# A run on a Cloud TPU slice, from the request for the slice to its deletion. docs/pod.md has the steps around it.
#   bash launch/tpu_vm.sh [--dry-run] COMMAND [flags of glipv2_jax.main]
#     create   asks for the slice, as a queued resource
#     wait     waits until it is there
#     setup    copies this project to all hosts, installs it, mounts the file server; again after changes
#     run      starts the program on all hosts, each under launch/supervise.py; goes on without this machine
#     keep     all of the above and, whenever the slice was preempted, all of it again, until the run has finished or has
#              failed for good, or somebody has stopped it or deleted the slice
#     status, log, stop (saves; run goes on from there), delete
#   PROJECT, ZONE, NAME    of the slice
#   ACCELERATOR, RUNTIME   of create and keep, e.g. v5litepod-16 and v2-alpha-tpuv5-lite
#   SPOT=1                 asks for preemptible capacity
#   CREATE_FLAGS           more flags of `gcloud compute tpus queued-resources create`, e.g. --network=… or --reserved
#   NFS, NFS_OPTIONS, SETUP, RESTARTS: see tpu_host.sh
#   DELETE=1               keep deletes the slice when the run has finished, and when it has failed for good, after
#                          printing the last lines of every host
#   POLL                   seconds between two looks (default: 60)
set -euo pipefail

# shellcheck source=launch/acting.sh
source "$(dirname "${BASH_SOURCE[0]}")/acting.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# What a host needs of this project.
parts=(LICENSE NOTICE README.md configs glipv2_jax input_pipeline launch pyproject.toml setup.cfg)

more=()
case ${1:-} in
  create | keep)
    more+=(ACCELERATOR "the kind of slice, such as v5litepod-16" RUNTIME "the image of its machines, such as v2-alpha-tpuv5-lite")
    ;;
esac
need PROJECT "the Google Cloud project" ZONE "the zone of the slice, such as europe-west4-b" \
  NAME "a name for the slice and its request" "${more[@]}"
need_number 0 POLL RESTARTS
need_switch SPOT DELETE
where=(--project="$PROJECT" --zone="$ZONE")
poll=${POLL:-60}
most_failures=10
printf -v settings ' %q' NFS="${NFS:-}" NFS_OPTIONS="${NFS_OPTIONS:-}" SETUP="${SETUP:-}" RESTARTS="${RESTARTS:-}"

say() { echo "tpu_vm.sh: $*" >&2; }

# State of the request; that of the machines once they are there. MISSING: no such request; UNKNOWN: no answer.
slice_state() {
  local found
  if [[ -n $dry_run ]]; then
    act gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)'
    echo READY
  elif ! found=$(gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>&1); then
    if [[ $found == *NOT_FOUND* || $found == *"not found"* ]]; then
      echo MISSING
    else
      say "no answer: $found"
      echo UNKNOWN
    fi
  elif [[ $found == ACTIVE ]]; then
    gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" --format='value(state)' || echo UNKNOWN
  else
    echo "$found"
  fi
}

create() {
  local more=()
  [[ -z ${SPOT:-} ]] || more+=(--spot)
  # shellcheck disable=SC2206  # several flags in one variable
  more+=(${CREATE_FLAGS:-})
  act gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${where[@]}" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${more[@]}" --quiet
}

wait_for_slice() {
  local state before=
  while true; do
    state=$(slice_state)
    [[ $state == "$before" ]] || say "$NAME: $state"
    before=$state
    case $state in
      READY) return ;;
      MISSING | FAILED | SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED)
        say "$NAME will not come: delete it and create it again, as keep does"
        exit 1
        ;;
    esac
    sleep "$poll"
  done
}

# on_hosts WORKERS COMMAND…: runs launch/tpu_host.sh there.
on_hosts() {
  local line new=''
  printf -v line ' %q' "${@:2}"
  # A machine that was not set up has no script to ask.
  [[ $2 != state ]] || new="[ -e glipv2_jax/launch/tpu_host.sh ] || { echo 'state: none'; exit 0; }; "
  act gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --quiet \
    --command="${new}env$settings bash glipv2_jax/launch/tpu_host.sh$line"
}

setup() {
  local archive
  archive=$(mktemp -d)/glipv2_jax.tgz
  trap 'rm -rf "$(dirname "$archive")"; trap - RETURN' RETURN
  # Joined, as errors do not end a function that is asked whether it worked.
  act tar -czf "$archive" -C "$root" --exclude=__pycache__ "${parts[@]}" &&
    act gcloud compute tpus tpu-vm scp "$archive" "$NAME:glipv2_jax.tgz" "${where[@]}" --worker=all --quiet &&
    act gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --quiet \
      --command="mkdir -p glipv2_jax && tar -xzf glipv2_jax.tgz -C glipv2_jax" &&
    on_hosts all setup
}

# Takes back that the run was told to stop.
allow() {
  act gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --quiet --command="rm -f glipv2_jax/.stopped"
}

# What the hosts say, each word once: of running, finished, failed, stopped, none. Empty: no answer.
run_state() {
  on_hosts all state 2>/dev/null | sed -n 's/^.*state: //p' | sort -u | tr '\n' ' ' || true
}

delete() {
  act gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}

# What keep does with the slice of a run that is over. keep_or_delete "how it ended".
keep_or_delete() {
  say "$1"
  if [[ -n ${DELETE:-} ]]; then
    for _ in 1 2 3; do
      if delete; then
        return
      fi
      sleep "$poll"
    done
    say "the slice could not be deleted"
  fi
  say "The slice still costs money: bash launch/tpu_vm.sh delete"
  [[ -z ${DELETE:-} ]]
}

keep() {
  need_flags "$@"
  if [[ -n $dry_run ]]; then
    create
    wait_for_slice
    setup
    on_hosts all run "$@"
    return
  fi
  # Every round looks first, so that it does not matter when this was started, or started again.
  # asked: there is a request, as far as is known here. known: there has been one. begun: the run was seen, or started here.
  local state before='' asked='' known='' begun='' failures=0 silent=0
  while true; do
    state=$(slice_state)
    [[ $state != READY ]] || state="READY, $(run_state)"
    [[ $state == "$before" ]] || say "$NAME: $state"
    before=$state
    case $state in
      READY* | ACCEPTED | CREATING | WAITING_FOR_RESOURCES | PROVISIONING) asked=1 known=1 ;;
    esac
    case $state in
      MISSING)
        if [[ -n $asked ]]; then
          say "somebody has deleted the slice: this is the end"
          exit 1
        elif create; then
          asked=1 known=1
        elif [[ -z $known ]]; then             # later, what is refused now may be given in a minute
          exit 1
        fi
        ;;
      FAILED | SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED)
        delete || true
        asked='' begun='' failures=0
        ;;
      READY*stopped*)
        if [[ -n $begun ]]; then
          say "somebody has stopped the run: this is the end; another keep goes on from there"
          say "The slice still costs money: bash launch/tpu_vm.sh delete"
          exit 1
        fi
        # An earlier stop. One that comes while the slice is set up counts.
        if allow; then
          begin "$@"
        fi
        ;;
      READY*failed*)
        if [[ -n $begun ]]; then
          on_hosts all last >&2 || true
          keep_or_delete "the run has failed more often than RESTARTS allows; its last lines stand above" || true
          exit 1
        fi
        begin "$@"
        ;;
      READY*running*none* | READY*none*running* | "READY, none ") begin "$@" ;;
      READY*running*) begun=1 ;;
      "READY, ") [[ $((silent += 1)) -ne $most_failures ]] || say "the hosts have given no answer $silent times; trying on" ;;
      READY*finished*)
        keep_or_delete "finished"
        return
        ;;
    esac
    sleep "$poll"
  done
}

# Of keep: sets up and runs. A slice that cannot be, which costs money meanwhile, ends it.
begin() {
  if setup && on_hosts all run "$@"; then
    begun=1 failures=0
  elif [[ $((failures += 1)) -ge $most_failures ]]; then
    keep_or_delete "could not set up or start, $failures times in a row" || true
    exit 1
  fi
}

case ${1:-} in
  create) create ;;
  wait) wait_for_slice ;;
  setup) setup ;;
  run)
    need_flags "${@:2}"
    allow
    on_hosts all run "${@:2}"
    ;;
  keep) keep "${@:2}" ;;
  status)
    say "$NAME: $(slice_state)"
    on_hosts all state
    ;;
  log) on_hosts 0 log ;;
  stop) on_hosts all stop ;;
  delete) delete ;;
  *)
    echo "tpu_vm.sh: found '${1:-}', expected create, wait, setup, run, keep, status, log, stop or delete" >&2
    exit 2
    ;;
esac
