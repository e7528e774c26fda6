#!/usr/bin/env bash
# Runs training, or a worker of a study, as a Slurm job. See usage() below and docs/slurm.md.
# Options on the sbatch command line override these:
#SBATCH --job-name=convit_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

usage() {
    cat <<'END'
sbatch [OPTIONS OF sbatch] scripts/slurm.sh FLAGS OF train.py
sbatch [OPTIONS OF sbatch] --array=1-N scripts/slurm.sh study FLAGS OF convit_jax.study

Submit it from the checkout. All tasks of the job train one run together:

  --gpus-per-node=4                          one process per node, with all of its GPUs
  --gpus-per-node=4 --ntasks-per-node=4      one process per GPU
  --nodes=2                                  either of these, on two nodes
  --cpus-per-task=16                         cores for each process and its data workers
  --time=4:00:00                             for example, the longest time the partition allows
  --partition= --account= --mem= --output=   as your cluster requires

Five minutes before the time limit (--signal=B:USR1@300) it saves a checkpoint and requeues the
job, which resumes, as often as needed. The same happens when the job is preempted or requeued by
others, but not when train.py ended by itself: 0 finished, 1 failed, 2 wrong input.

  scancel JOB                        ends it; it saves if it can within KillWait (often 30 s)
  scancel --signal=TERM JOB          saves without a time limit, and ends
  scancel --signal=USR1 --batch JOB  saves, and requeues the job

`study`: each task of the array trains a share of the cells (--worker=I/N), or, with --worker=1/1
among the flags, any cell that no other worker is training, on file systems with locks.

In the environment of sbatch:
  VENV   the virtual or conda environment, readable by all nodes (.venv)

Outside of a job this checks the flags and submits nothing:  scripts/slurm.sh FLAGS
END
}

mistake() {
    echo "slurm.sh: $1" >&2
    exit 2
}

say() { echo "slurm.sh: $(date +%T) $1" >&2; }

# The value of the last flag --NAME=VALUE or --NAME VALUE, or nothing.
value_of() {
    local flag value='' is_next=''
    for flag in ${flags[@]+"${flags[@]}"}; do
        [ -z "$is_next" ] || value=$flag
        is_next=''
        case $flag in
            --"$1"=*) value=${flag#*=} ;;
            --"$1") is_next=yes ;;
        esac
    done
    printf %s "$value"
}

# A field of the job from `scontrol show job`, such as JobState.
job_field() { scontrol show job "$job" --oneliner | tr ' ' '\n' | sed -n "s/^$1=//p"; }

# The checkpoints, which are named by their steps; nothing on gs://, which a shell cannot list.
checkpoints() { ls "$directory/checkpoints" "$directory"/cells/*/checkpoints 2>/dev/null || :; }

check_flags() {
    case ${flags[0]-} in
        --help | -h) usage && exit ;;
        study) what=study command=(-m convit_jax.study) flags=("${flags[@]:1}") ;;
        --*) what=train.py command=(train.py) ;;
        '') mistake "expected flags of train.py, or study and its flags (see --help)" ;;
        st*) mistake "no command '${flags[0]}': did you mean 'study'?" ;;
        *) mistake "no command '${flags[0]}': expected flags of train.py, or study and its flags" ;;
    esac
    local flag=workdir
    [ "$what" = train.py ] || flag=out
    directory=$(value_of $flag)
    [ "$directory" ] || mistake "expected --$flag=DIRECTORY, on a file system of all nodes"
    [[ -e train.py && -d convit_jax ]] ||
        mistake "$PWD is not the checkout: submit from it, or by sbatch --chdir=CHECKOUT"
    [ -x "$python" ] ||
        mistake "no environment in VENV=$VENV: create one (docs/slurm.md), or set VENV= to another"
}

check_job() {
    local allocated=$SLURM_JOB_NUM_NODES tasks=${SLURM_NTASKS:-1} each=${SLURM_NTASKS_PER_NODE:-1}
    local gpus=${SLURM_GPUS_ON_NODE:-0} hiding
    [ "${JAX_PLATFORMS:-}" != cpu ] || gpus=0 # --exclusive allocates the GPUs of the nodes, too
    [ -z "${SLURM_STEP_ID:-}" ] || mistake "it calls srun itself: expected sbatch, not srun, before it"
    [ "$tasks" = $((allocated * each)) ] || mistake "$tasks tasks are not $allocated node(s) times \
$each: expected --nodes and --ntasks-per-node, and no --ntasks"
    for hiding in SLURM_GPUS_PER_TASK SLURM_GPU_BIND; do
        [ -z "${!hiding:-}" ] || mistake "$hiding=${!hiding} hides GPUs from processes, which \
select their own: expected --gpus-per-node=N and --ntasks-per-node=N"
    done
    if [ "$what" = study ]; then
        [ "$tasks" = 1 ] || mistake "a worker of a study is one process, not $tasks: expected \
--nodes=1 and --ntasks-per-node=1, and an --array for several workers"
        divide_study
    elif [ "${SLURM_ARRAY_JOB_ID:-}" ]; then
        mistake "--array would train one --workdir several times: expected it only before study"
    fi
    if [ "$gpus" != 0 ]; then
        [ $((gpus % each)) = 0 ] || mistake "$gpus GPUs do not divide among $each processes: \
expected --gpus-per-node to be a multiple of --ntasks-per-node"
        has_gpu_part || mistake "the JAX in VENV=$VENV is for CPUs only: expected jax[cuda12] or \
jax[cuda13] there (docs/slurm.md)"
    fi
    gpus=$((gpus / each))
    task=("$python" "${command[@]}" "${flags[@]}")
    # By default JAX uses one GPU per process, even with one process per node.
    # shellcheck disable=SC2016  # expanded by the task's shell
    [[ $gpus = 0 || $what = study ]] || task=(bash -c 'first=$((SLURM_LOCALID * $1))
export JAX_LOCAL_DEVICE_IDS=$(seq -s , $first $((first + $1 - 1)))
shift; exec "$@"' bash "$gpus" "${task[@]}")
    say "start $((${SLURM_RESTART_COUNT:-0} + 1)) of job $job: $what in $tasks process(es) of \
$gpus GPU(s) on $SLURM_JOB_NODELIST"
}

has_gpu_part() {
    "$python" -c 'import sys; from importlib.metadata import entry_points
sys.exit(not entry_points(group="jax_plugins"))'
}

# Assigns this task of the array its share of the cells, unless the flags do.
divide_study() {
    [[ ${SLURM_ARRAY_JOB_ID:-} && -z $(value_of worker) ]] || return 0
    local first=$SLURM_ARRAY_TASK_MIN last=$SLURM_ARRAY_TASK_MAX count=$SLURM_ARRAY_TASK_COUNT
    [ $((last - first + 1)) = "$count" ] || mistake "--array has $count tasks between $first and \
$last, so some shares would not be trained: expected --array=1-$count"
    flags+=("--worker=$((SLURM_ARRAY_TASK_ID - first + 1))/$count")
}

# Requeues the job if train.py saved because of the time limit or a preemption. Slurm itself requeues
# a job whose node failed, and one requeued by others.
requeue() {
    local state preempted
    state=$(job_field JobState) && preempted=$(job_field PreemptTime) || state=unknown
    preempted=${preempted:-None} # clusters without preemption have no such field
    if [ "$state" = unknown ]; then
        say "saved, but Slurm does not answer: sbatch the same command to resume"
    elif [[ $state != RUNNING && $state != SIGNALING ]]; then
        return # cancelled, or requeued by others
    elif [[ -z $warned && $preempted = None ]]; then
        say "ended by a SIGTERM that was neither the warning (--signal=B:USR1@SECONDS) nor a \
preemption: not requeued; the same command resumes the run"
    elif [[ $preempted = None && $directory != *://* && $(checkpoints) = "$before" ]]; then
        say "no step was taken in the $SECONDS seconds up to the warning: not requeued; expected a \
--time longer than --signal, start-up and compilation together"
    elif scontrol requeue "$job"; then
        say "saved and requeued"
    else
        say "saved, but Slurm does not requeue it: sbatch the same command to resume"
    fi
}

flags=("$@")
: "${VENV:=.venv}"
python=$VENV/bin/python
check_flags
[ "${SLURM_JOB_ID:-}" ] ||
    mistake "not in a Slurm job: sbatch [OPTIONS] $0 FLAGS (the flags are valid)"
# Each array task has its own job number, but the last one's is that of the array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
warned='' interrupted=''
# Only this shell receives the warning. All processes receive SIGTERM at once (scancel, requeue), and
# this shell must not end before the others.
trap 'interrupted=yes' TERM
trap 'interrupted=yes warned=yes; say "the time limit is near"; scancel --signal=TERM "$job"' USR1
check_job
before=$(checkpoints)

# Since Slurm 22.05 srun does not inherit this from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# If a process fails, the others end by themselves, each with its own code (--kill-on-bad-exit would
# replace it by 143); a hanging process is killed 20 seconds later.
srun --kill-on-bad-exit=0 --wait=20 "${task[@]}" &
while :; do
    interrupted='' code=0
    wait $! || code=$?
    [ "$interrupted" ] || break
done
case $code in
    0) ;;
    143) requeue ;;
    *) say "$what ended with code $code: not requeued" ;;
esac
exit "$code"
