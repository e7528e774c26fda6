#!/usr/bin/env bash
# A TPU VM or a pod slice of Google Cloud, from nothing to a trained model and back to nothing.
# What it does is in usage() below and, at length, in docs/tpu.md.
set -euo pipefail

usage() {
    cat <<'END'
scripts/tpu.sh COMMAND [--spot] [--dry-run] [FLAGS OF train.py]

  create        asks for the slice, by a queued resource; --spot: cheaper, and may be taken away
  status        the request's state and, once it is ACTIVE, the run's: new, ready, running or the
                code that train.py ended with
  setup         copies this checkout to every worker, with its changes to tracked files; installs it
  train FLAGS   starts train.py FLAGS on every worker and returns; the same again resumes
  logs          follows the log of worker 0, through to Ctrl-C
  stop          SIGTERM to train.py: it saves a checkpoint and ends with code 143
  delete        gives the slice back, with all that lies on its own disks
  run FLAGS     all of it: create, setup and train; again whenever the slice was taken away or
                train.py ended with code 143; delete at the end. It remembers nothing: it may be
                interrupted and started again.

--dry-run prints the commands and runs nothing.

In the environment:
  PROJECT ZONE NAME   the Cloud project, the zone, a name for the slice
  TYPE                its accelerator type: v5litepod-8, v4-128, v5p-128, v6e-256, ...
  VERSION             its runtime version, if not the one that goes with TYPE
  DISK                a disk with data, labelled by its name: read-only in /mnt/DISK on every worker
  CACHE               gs://BUCKET/DIRECTORY of compiled programs, to compile once (JAX's own cache)
  RETRIES             how many failures `run` bears, preemptions aside (3)
  POLL                seconds between two looks of `run` (60)
END
}

mistake() {
    echo "tpu.sh: $1" >&2
    exit 2
}

say() { echo "tpu.sh: $1" >&2; }

# The words as a shell would read them again.
quoted() {
    local word
    for word in "$@"; do
        case $word in
            '' | *[!a-zA-Z0-9_@%+=:,./-]*) word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
        esac
        printf '%s ' "$word"
    done
}

do_it() {
    if [ "$dry_run" ]; then
        quoted "$@" | sed 's/ $//'
        echo
    else
        "$@"
    fi
}

tpu() { do_it gcloud compute tpus "$@" "--project=$PROJECT" "--zone=$ZONE" --quiet; }

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

# State of the queued resource, or NONE. Fails, with gcloud's words, where it cannot be known.
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

# What goes on on worker 0, which is what goes on on all: a process that ends ends the others.
progress() {
    # shellcheck disable=SC2016  # the worker's shell is to expand it
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
    do_it git archive "--output=$archive" "${commit:-HEAD}" &&
        tpu tpu-vm scp "$archive" "$NAME:convit_jax.tar.gz" --worker=all &&
        # The VMs' own Python may be older than what is needed: uv fetches one.
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
    # The shell that waits outlives the connection, and leaves the code that train.py ended with.
    on_workers all "cd convit_jax || exit
if kill -0 \"\$(cat train.pid 2>/dev/null)\" 2>/dev/null; then echo 'it trains already'; exit; fi
rm -f train.code
nohup setsid sh -c '\"\$@\" & echo \$! >train.pid; wait \$!; echo \$? >train.code' sh \
env ${CACHE:+$(quoted "JAX_COMPILATION_CACHE_DIR=$CACHE")}.venv/bin/python train.py \
$(quoted "$@")>>train.log 2>&1 </dev/null &"
}

# shellcheck disable=SC2016  # the workers' shells are to expand it
stop() { on_workers all 'kill -TERM "$(cat convit_jax/train.pid)"'; }

logs() { on_workers 0 'tail -n 100 -F convit_jax/train.log'; }

delete() { tpu queued-resources delete "$NAME" --force; }

failures=0
# Bears a failure, or ends with a code, leaving the slice as it is.
failure() {
    failures=$((failures + 1))
    say "$1 failed ($failures; $RETRIES are borne)"
    [ "$failures" -gt "$RETRIES" ] || return 0
    say "$NAME is kept and costs money: scripts/tpu.sh logs, then scripts/tpu.sh delete"
    exit "$2"
}

step() { "$@" || failure "$1" 1; }

# Looks what there is, does what is due, and looks again.
run() {
    local now was='' begun='' code
    if [ "$dry_run" ]; then
        create && status && setup && train "$@" && delete
        return
    fi
    while :; do
        if now=$(state); then
            [ "$now" != ACTIVE ] || now="ACTIVE $(progress 2>/dev/null || echo unreachable)"
        else
            [ "$was" ] || exit 1 # at the first look it is no passing trouble
            now=UNKNOWN
        fi
        [ "$now" = "$was" ] || say "$NAME is $now"
        was=$now code=${now#ACTIVE }
        # What had ended before the first look may have been another run: it is begun again.
        [[ $begun || ! $code =~ ^[0-9]+$ ]] || code=ready
        case $code in
            NONE) step create ;;
            SUSPENDED) step delete ;;
            FAILED) failure "the request" 1 && step delete ;;
            new) step setup ;;
            ready | 143) step train "$@" && begun=yes ;;
            running) begun=yes ;;
            0) say "finished" && delete && return ;;
            [0-9]*)
                [ "$code" != 2 ] || failures=$RETRIES # a mistake stays one however often it is made
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
[ "$command" ] || mistake "expected one of $commands (--help tells all)"
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
            mistake "--workdir=${BASH_REMATCH[1]} goes when the slice goes: expected gs://BUCKET/DIRECTORY"
        ;;
    *) [ ${#flags[@]} = 0 ] || mistake "$command takes no '${flags[0]}' (--help tells all)" ;;
esac
[[ $dry_run ]] || command -v gcloud >/dev/null || mistake "no gcloud: install the Google Cloud CLI"
cd "$(dirname "$0")/.."
"$command" ${flags[@]+"${flags[@]}"}
