#!/usr/bin/env bash
#SBATCH --job-name=glipv2_jax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# A run on GPUs under Slurm, one process for each GPU: submits itself, or runs where it is a job already.
#   NODES=2 GPUS=8 bash launch/slurm.sh [--dry-run] [flags of glipv2_jax.main]
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh [flags], from the project's folder
#   NODES, GPUS   machines, and GPUs of each; what else sbatch should know is in SBATCH_PARTITION, SBATCH_TIMELIMIT, …
#   CPUS          cores of a process (default: the cluster's)
#   RESTARTS      starts again within the job after failures in a row (default: 10)
#   VENV, EXTRAS, PYTHON: see install.sh (EXTRAS here by default: cuda); all machines must see the environment
#
# Two minutes before its time is over the job is sent USR1, also when it is preempted where slurm.conf says
# preempt_send_user_signal: the program saves, and the job goes back into the queue. SIGTERM means that it was
# cancelled: it does not. To end a run with a last checkpoint: scancel --batch --signal=TERM JOB
set -euo pipefail

# A submitted script is a copy in a folder of Slurm's.
root=$(dirname "${BASH_SOURCE[0]}")/..
if [[ ! -f $root/launch/acting.sh ]]; then
  root=${GLIPV2_JAX_ROOT:-${SLURM_SUBMIT_DIR:-.}}
fi
if [[ ! -f $root/launch/acting.sh ]]; then
  echo "slurm.sh: found no launch/acting.sh in $root, expected this project:" \
    "submit from its folder, or set GLIPV2_JAX_ROOT" >&2
  exit 2
fi
# shellcheck source=launch/acting.sh
source "$root/launch/acting.sh"
root=$(cd "$root" && pwd)
export EXTRAS=${EXTRAS:-cuda} GLIPV2_JAX_ROOT=$root

submit() {
  need NODES "the number of machines" GPUS "the number of GPUs of each machine"
  need_number 1 NODES GPUS CPUS
  # shellcheck disable=SC2153  # GPUS is another than CPUS
  local size=(--nodes="$NODES" --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS")
  [[ -z ${CPUS:-} ]] || size+=(--cpus-per-task="$CPUS")
  # Here rather than in the job, whose machines may have no network.
  act bash "$root/launch/install.sh"
  act sbatch "${size[@]}" "$root/launch/slurm.sh" "$@"
}

# SIGTERM goes to the tasks by scancel: srun itself, sent one, would kill them at once.
told_by=
tell() {
  told_by=$1
  echo "slurm.sh: $1; the program saves and stops" >&2
  act scancel --signal=TERM "$SLURM_JOB_ID"
}

run() {
  local python pid code=0
  python=$(act bash "$root/launch/install.sh")
  # srun no longer inherits it (Slurm 22.05).
  [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  trap 'tell USR1' USR1
  trap 'tell TERM' TERM
  # A supervisor that gave up ends the others five minutes later, not at once: they may be saving.
  act srun --kill-on-bad-exit=0 --wait=300 "$python" "$root/launch/supervise.py" --restarts="${RESTARTS:-10}" -- \
    "$python" -m glipv2_jax.main "$@" &
  pid=$!
  # A trapped signal ends wait, not srun; wait is asked once more when srun has surely ended.
  while kill -0 "$pid" 2>/dev/null; do
    wait "$pid" || true
  done
  wait "$pid" || code=$?
  # Told as it was starting, the program ends by the signal itself.
  if [[ $code == 75 && $told_by != TERM || $code != 0 && $told_by == USR1 ]]; then
    act scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
}

need_number 0 RESTARTS
need_flags "$@"
if [[ -z ${SLURM_JOB_ID:-} ]]; then
  submit "$@"
else
  run "$@"
fi
