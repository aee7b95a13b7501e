#!/usr/bin/env bash
# Start the cluster of laptop.yaml with its head in the foreground; Ctrl-C ends all of it.
# Then, in another terminal in this folder:
#   export RAY_AUTH_MODE=token RAY_ADDRESS=http://127.0.0.1:8265 PATH="$PWD/.venv/bin:$PATH"
#   ray job submit -- python jobs/train_multimodal.py
set -euo pipefail
cd "$(dirname "$0")/.."  # a job runs in the folder in which its cluster was started
export PATH="$PWD/.venv/bin:$PATH"
export RAY_AUTH_MODE=token
[ -s "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ] || ray get-auth-token --generate >/dev/null
export RAY_FAKE_CLUSTER=1 AUTOSCALER_UPDATE_INTERVAL_S=1
export RAY_JOB_STOP_WAIT_TIME_S=120  # time to write a checkpoint; Ray's own 3 seconds are too short
export RAY_worker_maximum_startup_concurrency=8  # by itself as many as CPUs, of which this head has none
# Jobs may run in copies of this folder that go with them (--working-dir).
export PERCEIVER_STORAGE__PATH="${PERCEIVER_STORAGE__PATH:-$PWD/runs}"
export PYTHONPATH="$PWD/cluster${PYTHONPATH:+:$PYTHONPATH}"  # where the autoscaler finds laptop_nodes
# Workers ask for GPUs, so that the cluster has to grow, and compute on CPUs, since these GPUs do not exist.
export PERCEIVER_TRAIN__GPUS_PER_WORKER=1 PERCEIVER_TRAIN__DEVICE=cpu
exec ray start --head --block --port=6379 --num-cpus=0 --num-gpus=0 --dashboard-host=127.0.0.1 \
  --metrics-export-port=8080 --disable-usage-stats --autoscaling-config=cluster/laptop.yaml "$@"
