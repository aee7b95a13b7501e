#!/usr/bin/env bash
# Start the autoscaling cluster of laptop.yaml with the head in the foreground; Ctrl-C stops all nodes.
# Then, in another terminal in the repository's root:
#   export RAY_AUTH_MODE=token RAY_ADDRESS=http://127.0.0.1:8265 PATH="$PWD/.venv/bin:$PATH"
#   ray job submit -- python jobs/train_multimodal.py
set -euo pipefail
cd "$(dirname "$0")/.."  # jobs run in the working directory of the head
export PATH="$PWD/.venv/bin:$PATH"
export RAY_AUTH_MODE=token
[ -s "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ] || ray get-auth-token --generate >/dev/null
export RAY_FAKE_CLUSTER=1 AUTOSCALER_UPDATE_INTERVAL_S=1
export RAY_JOB_STOP_WAIT_TIME_S=120  # time to write a checkpoint; Ray's default of 3 seconds is too short
export RAY_worker_maximum_startup_concurrency=8  # by default the number of CPUs, which is 0 on this head
export RAY_task_events_max_num_task_in_gcs=10000  # 40 MB of memory; Ray keeps 100,000 by default
# An absolute path, since jobs may run in temporary copies of this folder (--working-dir).
export PERCEIVER_STORAGE__PATH="${PERCEIVER_STORAGE__PATH:-$PWD/runs}"
export PYTHONPATH="$PWD/cluster${PYTHONPATH:+:$PYTHONPATH}"  # the autoscaler imports laptop_nodes from there
# Workers request GPUs, so that the cluster grows, but compute on CPUs, since these GPUs do not exist.
export PERCEIVER_TRAIN__GPUS_PER_WORKER=1 PERCEIVER_TRAIN__DEVICE=cpu
exec ray start --head --block --port=6379 --num-cpus=0 --num-gpus=0 --dashboard-host=127.0.0.1 \
  --metrics-export-port=8080 --disable-usage-stats --autoscaling-config=cluster/laptop.yaml "$@"
