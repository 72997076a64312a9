#!/bin/bash
# One run of FedLab on several machines of a Slurm cluster, for example: sbatch examples/slurm.sh fedlgd --rounds 40
# All that follows the script's name is passed to `fedlab run`.
#
# All machines need FedLab in the same environment, for example on a disk that they share. Activate it before sbatch,
# which passes it on. Ray has no passwords, so the machines must be in a network that you trust.
#SBATCH --job-name=fedlab
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
##SBATCH --gpus-per-node=1
#SBATCH --time=02:00:00
#SBATCH --output=fedlab-%j.log
# two minutes before the time is up the run is told to end, as by Ctrl-C; `fedlab resume` goes on with it
#SBATCH --signal=B:TERM@120
set -euo pipefail

# a port of this job's own, so that two jobs that share a machine do not meet
port=$((20000 + SLURM_JOB_ID % 20000))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
address="$head:$port"
cpus=${SLURM_CPUS_PER_TASK:-1}

# Ray lives in steps of the job. They are ended here, and by Slurm itself if this script is killed.
steps=()
trap 'kill "${steps[@]}" 2>/dev/null || true' EXIT

started() { # waits until Ray has so many machines
    until [ "$(ray status --address="$address" 2>/dev/null | grep -c ' node_')" -ge "$1" ]; do
        for step in "${steps[@]}"; do
            kill -0 "$step" 2>/dev/null || { echo "Ray did not start on $1 of the job's machines" >&2; exit 1; }
        done
        sleep 2
    done
}

srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" \
    python -m fedlab.engine.host start --head --port="$port" --num-cpus="$cpus" --block &
steps+=($!)
started 1
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    srun --nodes="$others" --ntasks="$others" --overlap --exclude="$head" \
        python -m fedlab.engine.host start --address="$address" --num-cpus="$cpus" --block &
    steps+=($!)
    started "$SLURM_JOB_NUM_NODES"
fi

# in the background, because bash reacts to the signal of Slurm only while it waits
fedlab run "$@" --plain --set engine.name=ray --set "engine.address=$address" &
run=$!
trap 'kill -TERM "$run" 2>/dev/null || true' TERM
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do # the signal has ended the wait, and not yet the run
    code=0
    wait "$run" || code=$?
done
exit "$code"
