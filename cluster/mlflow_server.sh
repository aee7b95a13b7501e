#!/usr/bin/env bash
# Start an MLflow server for several machines, on PostgreSQL if this user can connect to a database "mlflow", else
# SQLite. To set up PostgreSQL:
#   apt-get install postgresql; sudo -u postgres createuser "$USER"; sudo -u postgres createdb -O "$USER" mlflow
# It listens on loopback only. MLFLOW_HOST=0.0.0.0 opens it to the network, where anybody can then read and write: put
# it behind a firewall, or a proxy with a password. Runs use it with PERCEIVER_TRACKING__URI=http://HOST:5000. MLflow
# accepts private addresses as HOST; a host name must be allowed: MLFLOW_SERVER_ALLOWED_HOSTS="HOST:5000,localhost:*".
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false  # would start five processes for evaluations of language models
mkdir -p runs
store="sqlite:///$PWD/runs/mlflow.db"
if command -v psql >/dev/null && psql --no-password --quiet --dbname=mlflow --command='' 2>/dev/null; then
  store="postgresql+psycopg2:///mlflow"  # the driver that `make setup` installs, which is not SQLAlchemy's default
fi
echo "MLflow at http://${MLFLOW_HOST:-127.0.0.1}:${MLFLOW_PORT:-5000}, records in $store"
exec mlflow server --backend-store-uri="$store" --artifacts-destination="$PWD/runs/mlflow_artifacts" \
  --host="${MLFLOW_HOST:-127.0.0.1}" --port="${MLFLOW_PORT:-5000}" "$@"
