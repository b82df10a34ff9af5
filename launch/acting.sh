#!/usr/bin/env bash
# Sourced by the scripts that act on a cluster: their help, checked variables and flags, and commands that --dry-run only
# prints.
set -euo pipefail

# The text at the head of the script.
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  while IFS= read -r line && [[ $line == "#"* ]]; do
    [[ $line == "#!"* || $line == "#SBATCH"* ]] || echo "${line#"#"}"
  done <"$0"
  exit
fi

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

# need [VARIABLE "what it is"]…: ends with a message that names all that are not set.
need() {
  local missing=()
  while [[ $# -gt 0 ]]; do
    [[ -n ${!1:-} ]] || missing+=("$1 is not set: $2")
    shift 2
  done
  if [[ ${#missing[@]} -gt 0 ]]; then
    printf "$(basename "$0"): %s\n" "${missing[@]}" >&2
    echo "For example: ${missing[0]%% *}=… bash launch/$(basename "$0") …, or export it; --help has all of them" >&2
    exit 2
  fi
}

# need_number LEAST [VARIABLE]…: ends with a message that names all that are set to something else.
need_number() {
  local variable wrong='' least=$1
  for variable in "${@:2}"; do
    if [[ -n ${!variable:-} ]] && [[ ! ${!variable} =~ ^(0|[1-9][0-9]*)$ || ${!variable} -lt $least ]]; then
      echo "$(basename "$0"): found $variable=${!variable}, expected a number from $least" >&2
      wrong=1
    fi
  done
  [[ -z $wrong ]] || exit 2
}

# need_switch [VARIABLE]…: 1, or not set; 0 and nothing are no.
need_switch() {
  local variable
  for variable in "$@"; do
    case ${!variable:-} in
      '' | 1) ;;
      0) unset "$variable" ;;
      *)
        echo "$(basename "$0"): found $variable=${!variable}, expected 1 or 0" >&2
        exit 2
        ;;
    esac
  done
}

# need_flags FLAGS…: ends with a message unless a run has what the program cannot do without.
need_flags() {
  local flag word before found missing=()
  for flag in config workdir; do
    found='' before=''
    for word in "$@"; do
      if [[ $word =~ ^--?($flag=.|flagfile) || $before =~ ^--?$flag$ && $word =~ ^[^-] ]]; then
        found=1
      fi
      before=$word
    done
    [[ -n $found ]] || missing+=("--$flag")
  done
  if [[ ${#missing[@]} -gt 0 ]]; then
    echo "$(basename "$0"): found no ${missing[*]} among the flags '$*', expected --config=FILE and --workdir=FOLDER," \
      "a folder that all machines share" >&2
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
