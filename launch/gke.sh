#!/usr/bin/env bash
# A run on one TPU slice of a GKE cluster with the JobSet controller. docs/pod.md has the steps around it.
#   bash launch/gke.sh [--dry-run] COMMAND [flags of glipv2_jax.main]
#     create   makes the node pool: the slice, which costs money from here on
#     run      starts launch/jobset.yaml on it; restarts are the cluster's business
#     status, log, stop (saves; run goes on from there), delete (the node pool)
#   NAME                    of the run and its node pool
#   CLUSTER, LOCATION, PROJECT, MACHINE   of create and delete; MACHINE e.g. ct5lp-hightpu-4t
#   ACCELERATOR, TOPOLOGY   e.g. tpu-v5-lite-podslice and 4x4
#   CHIPS                   of a machine (default: 4)
#   IMAGE, CLAIM            of run: the image made of launch/Dockerfile; the PersistentVolumeClaim of the shared
#                           folder, which the program sees as /mnt/glipv2
#   RESTARTS                starts again after failures (default: 10)
#   SPOT=1                  preemptible machines
set -euo pipefail

# shellcheck source=launch/acting.sh
source "$(dirname "${BASH_SOURCE[0]}")/acting.sh"

here=$(dirname "${BASH_SOURCE[0]}")
chips=${CHIPS:-4}
sides="chips along each side of the slice, such as 4x4"
more=()
case ${1:-} in
  create | delete)
    more+=(PROJECT "the Google Cloud project" LOCATION "the zone or region of the cluster" CLUSTER "the cluster")
    [[ $1 == delete ]] || more+=(MACHINE "the kind of machine, such as ct5lp-hightpu-4t" TOPOLOGY "$sides")
    ;;
  run)
    more+=(ACCELERATOR "the kind of TPU, such as tpu-v5-lite-podslice" TOPOLOGY "$sides"
      IMAGE "the image with this project and the extra tpu, made of launch/Dockerfile"
      CLAIM "the PersistentVolumeClaim of the folder that all hosts share")
    ;;
esac
need NAME "a name for the run, of lower-case letters, digits and -" "${more[@]}"
where=(--project="${PROJECT:-}" --location="${LOCATION:-}" --cluster="${CLUSTER:-}")
if [[ ! $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]]; then
  echo "gke.sh: found NAME=$NAME, expected at most 40 lower-case letters, digits and -, a letter first" >&2
  exit 2
fi
need_number 1 CHIPS
need_number 0 RESTARTS
need_switch SPOT
pods=jobset.sigs.k8s.io/jobset-name=$NAME

# Sets hosts: how many machines the topology has.
count_hosts() {
  if [[ ! $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ || $((${TOPOLOGY//x/*} % chips)) -ne 0 ]]; then
    echo "gke.sh: found TOPOLOGY=$TOPOLOGY, expected sides such as 4x4, in all a multiple of CHIPS=$chips" >&2
    exit 2
  fi
  hosts=$((${TOPOLOGY//x/*} / chips))
}

create() {
  count_hosts
  local more=()
  [[ -z ${SPOT:-} ]] || more+=(--spot)
  act gcloud container node-pools create "$NAME" "${where[@]}" --machine-type="$MACHINE" --tpu-topology="$TOPOLOGY" \
    --num-nodes="$hosts" "${more[@]}" --quiet
}

manifest() {
  local text flags='' flag key
  text=$(<"$here/jobset.yaml")
  for flag in "$@"; do
    flags+="${flags:+, }'${flag//\'/\'\'}'"
  done
  local -A values=([NAME]=$NAME [RESTARTS]=${RESTARTS:-10} [HOSTS]=$hosts [ACCELERATOR]=$ACCELERATOR
    [TOPOLOGY]=$TOPOLOGY [IMAGE]=$IMAGE [CHIPS]=$chips [CLAIM]=$CLAIM)
  for key in "${!values[@]}"; do
    text=${text//__${key}__/"${values[$key]}"}
  done
  # Last, as flags may hold anything.
  printf '%s\n' "${text//__FLAGS__/"[$flags]"}"
}

run() {
  need_flags "$@"
  count_hosts
  [[ -z $dry_run ]] || manifest "$@"
  act kubectl apply --filename=- <<<"$(manifest "$@")"
}

case ${1:-} in
  create) create ;;
  run) run "${@:2}" ;;
  status)
    act kubectl get jobset "$NAME"
    act kubectl get pods --selector="$pods"
    ;;
  log) act kubectl logs --follow --tail=100 --selector="$pods,batch.kubernetes.io/job-completion-index=0" ;;
  stop) act kubectl delete jobset "$NAME" ;;
  delete) act gcloud container node-pools delete "$NAME" "${where[@]}" --quiet ;;
  *)
    echo "gke.sh: found '${1:-}', expected create, run, status, log, stop or delete" >&2
    exit 2
    ;;
esac
