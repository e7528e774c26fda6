#!/usr/bin/env bash
# Creates a TPU VM or pod slice on Google Cloud, trains a model on it and deletes it.
# See usage() below and docs/tpu.md.
set -euo pipefail

usage() {
    cat <<'END'
scripts/tpu.sh COMMAND [--spot] [--dry-run] [FLAGS OF train.py]

  create        requests the slice as a queued resource; --spot: cheaper, but may be preempted
  status        the request's state and, once it is ACTIVE, the run's: new, ready, running or the
                code that train.py ended with
  setup         copies this checkout to every worker, with its changes to tracked files; installs it
  train FLAGS   starts train.py FLAGS on every worker and returns; the same again resumes
  logs          follows the log of worker 0 until Ctrl-C
  stop          SIGTERM to train.py: it saves a checkpoint and ends with code 143
  delete        deletes the slice and everything on its disks
  run FLAGS     all of these: create, setup and train; again whenever the slice was preempted or
                train.py ended with code 143; delete at the end. It keeps no state, so it can be
                interrupted and restarted.

--dry-run prints the commands without running them.

In the environment:
  PROJECT ZONE NAME   the Cloud project, the zone, a name for the slice
  TYPE                its accelerator type: v5litepod-8, v4-128, v5p-128, v6e-256, ...
  VERSION             its runtime version, if not the default for TYPE
  DISK                a disk with data, labelled with its name; mounted read-only at /mnt/DISK
  CACHE               gs://BUCKET/DIRECTORY for JAX's compilation cache, to compile only once
  RETRIES             number of failures that `run` tolerates, besides preemptions (3)
  POLL                seconds between two status checks of `run` (60)
END
}

mistake() {
    echo "tpu.sh: $1" >&2
    exit 2
}

say() { echo "tpu.sh: $1" >&2; }

# Quotes the arguments for a shell.
quoted() {
    local word
    for word in "$@"; do
        case $word in
            '' | *[!a-zA-Z0-9_@%+=:,./-]*) word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
        esac
        printf '%s ' "$word"
    done
}

run_or_print() {
    if [ "$dry_run" ]; then
        quoted "$@" | sed 's/ $//'
        echo
    else
        "$@"
    fi
}

tpu() { run_or_print gcloud compute tpus "$@" "--project=$PROJECT" "--zone=$ZONE" --quiet; }

on_workers() { tpu tpu-vm ssh "$NAME" "--worker=$1" "--command=$2"; }

runtime_version() {
    case $TYPE in
        v4-[1-9]*) echo tpu-ubuntu2204-base ;;
        v5litepod-[1-9]*) echo v2-alpha-tpuv5-lite ;;
        v5p-[1-9]*) echo v2-alpha-tpuv5 ;;
        v6e-[1-9]*) echo v2-alpha-tpuv6e ;;
        v5e-[1-9]*) mistake "TYPE=$TYPE: did you mean 'v5litepod-${TYPE#v5e-}'?" ;;
        *) mistake "TYPE=$TYPE: expected v4-N, v5litepod-N, v5p-N or v6e-N, such as v5litepod-8" ;;
    esac
}

create() {
    local options=()
    [ -z "$spot" ] || options+=(--spot)
    [ -z "$DISK" ] ||
        options+=("--data-disk=source=projects/$PROJECT/zones/$ZONE/disks/$DISK,mode=read-only")
    tpu queued-resources create "$NAME" "--node-id=$NAME" "--accelerator-type=$TYPE" \
        "--runtime-version=$VERSION" ${options[@]+"${options[@]}"}
}

# State of the queued resource, or NONE. Fails with gcloud's message if it is unknown.
state() {
    local answer
    if answer=$(tpu queued-resources describe "$NAME" '--format=value(state.state)' 2>&1); then
        echo "$answer" | tail -n 1
    elif [[ $answer == *NOT_FOUND* ]]; then
        echo NONE
    else
        echo "$answer" >&2
        return 1
    fi
}

# Progress of worker 0, which is that of all: a process that ends also ends the others.
progress() {
    # shellcheck disable=SC2016  # expanded by the worker's shell
    on_workers 0 'cd convit_jax 2>/dev/null && [ -e installed ] || { echo new; exit; }
if kill -0 "$(cat train.pid 2>/dev/null)" 2>/dev/null; then echo running
else cat train.code 2>/dev/null || echo ready; fi' | if [ "$dry_run" ]; then cat; else tail -n 1; fi
}

status() {
    local now
    if [ "$dry_run" ]; then
        tpu queued-resources describe "$NAME" '--format=value(state.state)'
        progress
    else
        now=$(state)
        [ "$now" != ACTIVE ] || now="$now $(progress)"
        echo "$now"
    fi
}

setup() {
    local archive=${TMPDIR:-/tmp}/convit_jax.tar.gz commit=''
    [ "$dry_run" ] || commit=$(git stash create)
    run_or_print git archive "--output=$archive" "${commit:-HEAD}" &&
        tpu tpu-vm scp "$archive" "$NAME:convit_jax.tar.gz" --worker=all &&
        # The VMs' Python may be too old: uv installs a newer one.
        on_workers all "set -e
mkdir -p convit_jax; cd convit_jax; rm -f installed; tar -xzf ../convit_jax.tar.gz
${DISK:+sudo mkdir -p /mnt/$DISK
mountpoint -q /mnt/$DISK || sudo mount -o ro,noload LABEL=$DISK /mnt/$DISK
}python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv
~/.local/bin/uv pip install --quiet --python .venv 'jax[tpu]' -r requirements.txt
touch installed"
}

train() {
    # The waiting shell outlives the connection, and writes the exit code of train.py.
    on_workers all "cd convit_jax || exit
if kill -0 \"\$(cat train.pid 2>/dev/null)\" 2>/dev/null; then echo 'already training'; exit; fi
rm -f train.code
nohup setsid sh -c '\"\$@\" & echo \$! >train.pid; wait \$!; echo \$? >train.code' sh \
env ${CACHE:+$(quoted "JAX_COMPILATION_CACHE_DIR=$CACHE")}.venv/bin/python train.py \
$(quoted "$@")>>train.log 2>&1 </dev/null &"
}

# shellcheck disable=SC2016  # expanded by the workers' shells
stop() { on_workers all 'kill -TERM "$(cat convit_jax/train.pid)"'; }

logs() { on_workers 0 'tail -n 100 -F convit_jax/train.log'; }

delete() { tpu queued-resources delete "$NAME" --force; }

failures=0
# Counts a failure; after too many, exits with the given code and keeps the slice.
failure() {
    failures=$((failures + 1))
    say "$1 failed ($failures; $RETRIES are tolerated)"
    [ "$failures" -gt "$RETRIES" ] || return 0
    say "$NAME is kept and costs money: scripts/tpu.sh logs, then scripts/tpu.sh delete"
    exit "$2"
}

step() { "$@" || failure "$1" 1; }

# Checks the state, does the next step, and repeats.
run() {
    local now previous='' started='' code
    if [ "$dry_run" ]; then
        create && status && setup && train "$@" && delete
        return
    fi
    while :; do
        if now=$(state); then
            [ "$now" != ACTIVE ] || now="ACTIVE $(progress 2>/dev/null || echo unreachable)"
        else
            [ "$previous" ] || exit 1 # at the first check it is not a temporary problem
            now=UNKNOWN
        fi
        [ "$now" = "$previous" ] || say "$NAME is $now"
        previous=$now code=${now#ACTIVE }
        # What had ended before the first check may have been another run, so train is run again.
        [[ $started || ! $code =~ ^[0-9]+$ ]] || code=ready
        case $code in
            NONE) step create ;;
            SUSPENDED) step delete ;;
            FAILED) failure "the request" 1 && step delete ;;
            new) step setup ;;
            ready | 143) step train "$@" && started=yes ;;
            running) started=yes ;;
            0) say "finished" && delete && return ;;
            [0-9]*)
                [ "$code" != 2 ] || failures=$RETRIES # wrong input fails again in every retry
                failure train.py "$code" && step setup && step train "$@"
                ;;
        esac
        sleep "$POLL"
    done
}

commands='create status setup train logs stop delete run'
nearest() {
    local known length=2 best="expected one of $commands"
    for known in $commands; do
        while [ $length -le ${#1} ] && [ "${1:0:length}" = "${known:0:length}" ]; do
            best="did you mean '$known'?" length=$((length + 1))
        done
    done
    echo "$best"
}

spot='' dry_run='' command='' flags=()
for argument in "$@"; do
    case $argument in
        --spot) spot=yes ;;
        --dry-run) dry_run=yes ;;
        --help | -h) usage && exit ;;
        *) if [ "$command" ]; then flags+=("$argument"); else command=$argument; fi ;;
    esac
done
[ "$command" ] || mistake "expected one of $commands (see --help)"
[[ " $commands " == *" $command "* ]] || mistake "no command '$command': $(nearest "$command")"
: "${DISK:=}" "${CACHE:=}" "${VERSION:=}" "${RETRIES:=3}" "${POLL:=60}"
needed='PROJECT ZONE NAME'
[[ $command != create && $command != run ]] || needed+=' TYPE'
for variable in $needed; do
    [ "${!variable:-}" ] || mistake "$variable is not set: expected $needed in the environment"
done
[[ $VERSION || $needed != *TYPE ]] || VERSION=$(runtime_version)
case $command in
    train | run)
        [[ " ${flags[*]-}" =~ \ --workdir[=\ ]([^\ ]+) ]] ||
            mistake "expected --workdir=gs://BUCKET/DIRECTORY among the flags of train.py"
        [[ $command = train || ${BASH_REMATCH[1]} == gs://* ]] ||
            mistake "--workdir=${BASH_REMATCH[1]} is deleted with the slice: expected gs://BUCKET/DIRECTORY"
        ;;
    *) [ ${#flags[@]} = 0 ] || mistake "$command does not accept '${flags[0]}' (see --help)" ;;
esac
[[ $dry_run ]] || command -v gcloud >/dev/null || mistake "no gcloud: install the Google Cloud CLI"
cd "$(dirname "$0")/.."
"$command" ${flags[@]+"${flags[@]}"}
