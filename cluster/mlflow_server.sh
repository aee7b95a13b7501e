#!/usr/bin/env bash
# Serve MLflow for runs on several machines: in PostgreSQL if a database "mlflow" lets this user in, else in SQLite.
#   apt-get install postgresql; sudo -u postgres createuser "$USER"; sudo -u postgres createdb -O "$USER" mlflow
# It listens on this machine only. MLFLOW_HOST=0.0.0.0 opens it to the network, where anybody may then read and write:
# put a firewall or a proxy with a password before it. Runs find it by PERCEIVER_TRACKING__URI=http://HOST:5000, if HOST
# is a private address; a name has to be let in as well: MLFLOW_SERVER_ALLOWED_HOSTS="HOST:5000,localhost:*".
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false  # five processes that evaluate language models
mkdir -p runs
store="sqlite:///$PWD/runs/mlflow.db"
if command -v psql >/dev/null && psql --no-password --quiet --dbname=mlflow --command='' 2>/dev/null; then
  store="postgresql+psycopg2:///mlflow"  # the driver that `make setup` installs; SQLAlchemy takes another by itself
fi
echo "MLflow at http://${MLFLOW_HOST:-127.0.0.1}:${MLFLOW_PORT:-5000}, records in $store"
exec mlflow server --backend-store-uri="$store" --artifacts-destination="$PWD/runs/mlflow_artifacts" \
  --host="${MLFLOW_HOST:-127.0.0.1}" --port="${MLFLOW_PORT:-5000}" "$@"
