#!/usr/bin/env bash
# One search on many cores of a SLURM cluster: a Dask scheduler, a worker for every task of the job, and the search.
#   sbatch --export=ALL,CONFIG=configs/searches/digits.yaml,RUN=runs/digits configs/deploy/slurm.sh
# A job that ends early, by its time limit too, is submitted again and goes on (--resume).
#SBATCH --job-name=amcsearch
#SBATCH --ntasks=32
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
: "${CONFIG:?configuration file or name}" "${RUN:?run folder on a disk that the job sees}"
export OMP_NUM_THREADS=1 DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT=60s

scratch=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$scratch"' EXIT

dask scheduler --host "$(hostname -f)" --port 0 --no-dashboard --scheduler-file "$scratch/scheduler.json" &
until [ -s "$scratch/scheduler.json" ]; do sleep 0.2; done
address=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$scratch/scheduler.json")

srun dask worker "$address" --nthreads 1 --nworkers 1 --no-dashboard --local-directory "${TMPDIR:-/tmp}" &
amcsearch search "$CONFIG" --out "$RUN" --resume --scheduler "$address" --set "search.batch=${BATCH:-64}" &
search=$!
trap 'kill -TERM "$search"' TERM
wait "$search" || wait "$search"
