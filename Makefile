# Commands for people. Each target first creates .venv if it is missing or older than the package lists.
PYTHON ?= python3
ARGS ?=
KIND ?= model
# Two processes, for two cores: each runs whole files and starts a Ray of its own, in the order of tests/conftest.py.
# A test process that crashes ends the tests: pytest-xdist would wait for ever for the tests it had.
PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
LAPTOP = tests/integration/test_laptop_cluster.py
INSTALL = .venv/bin/pip install -q --disable-pip-version-check --upgrade -c constraints.txt --target
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help setup train search test test-runs test-long faults chaos soak fuzz test-gpu test-transformers test-onnx test-peers benchmark-model benchmark-data benchmark-gpu lint hooks docs ui mlflow-server laptop-cluster

help:  ## list all targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 24

setup: .venv/.installed  ## create .venv and install the project with the versions in constraints.txt

train: .venv/.installed  ## train the default model: make train ARGS="--train.steps 50"
	@.venv/bin/python jobs/train_multimodal.py $(ARGS)

search: .venv/.installed  ## hyperparameter search over shapes of the default model: make search ARGS="--search.trials 4"
	@.venv/bin/python jobs/tune_perceiver.py $(ARGS)

test: .venv/.installed  ## run the unit tests, which include two short trainings
	@.venv/bin/pytest $(PARALLEL) $(ARGS)

# The laptop's cluster has fixed ports, which the Ray of another test may hold.
test-runs: .venv/.installed  ## run end-to-end tests of training, search and clusters, some with injected failures: about half an hour
	@.venv/bin/pytest -m "runs and not long" $(LAPTOP)
	@.venv/bin/pytest -m "runs and not long" $(PARALLEL) --ignore=$(LAPTOP) $(ARGS)

test-long: .venv/.installed  ## run slow end-to-end tests (full disks, MLflow outages, kills, damaged files): about an hour
	@.venv/bin/pytest -m long -s $(ARGS)

faults: .venv/.installed  ## test fault tolerance: kill workers, nodes and drivers at 36 random moments, compare with undisturbed runs
	@.venv/bin/pytest -m faults -s $(ARGS)

chaos: .chaos/.installed  ## test with processes, stores, MLflow, networks, clocks and disks that fail at random moments: two hours
	@PYTHONPATH=.chaos .venv/bin/pytest -m chaos -s tests/integration/chaos $(ARGS)

soak: .venv/.installed  ## train for two hours and measure whether memory, files, threads and shared memory stay flat
	@.venv/bin/python jobs/benchmark.py soak --table soak.csv --figure soak.png $(ARGS)

fuzz: .venv/.installed  ## decode thousands of damaged files and report the outcomes: some minutes
	@.venv/bin/pytest -m fuzz -s $(ARGS)

test-gpu: .venv/.installed  ## run the tests that need a GPU: kernels, predicted memory, steps that never wait, losses; a minute or two
	@.venv/bin/pytest -m gpu tests/gpu $(ARGS)

test-transformers: .transformers/.installed  ## compare with Hugging Face transformers, installed in .transformers
	@PYTHONPATH=.transformers .venv/bin/pytest tests/model/test_transformers_layout.py tests/export/test_transformers_folder.py

test-onnx: .onnx/.installed  ## test ONNX export, and a model from training to serving; the extra `export` is installed in .onnx
	@PYTHONPATH=.onnx .venv/bin/pytest -s tests/export/test_traced_files.py tests/integration/test_train_to_serving.py

test-peers: .peers/.data .transformers/.installed  ## test the benchmark's data pipelines with other libraries, installed in .peers
	@PYTHONPATH=.peers:.transformers .venv/bin/pytest tests/benchmarks/test_data_peers.py

benchmark-model: .peers/.model .transformers/.installed  ## benchmark the model (or KIND=sweep, gpu) against other libraries, installed in .peers
	@PYTHONPATH=.peers:.transformers .venv/bin/python jobs/benchmark.py $(KIND) $(ARGS)

benchmark-data: .peers/.data .transformers/.installed  ## benchmark reading and decoding against other libraries, two of them installed in .peers
	@PYTHONPATH=.peers:.transformers .venv/bin/python jobs/benchmark.py data $(ARGS)

benchmark-gpu:  ## benchmark training steps on a GPU into docs/benchmarks.md, with other libraries; at most 6 minutes after warming up
	@$(MAKE) benchmark-model KIND="--page docs/benchmarks.md gpu" ARGS="$(ARGS)"

lint: .venv/.installed  ## check style, formatting and types
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

hooks: .venv/.installed  ## install the pre-commit hook that runs make lint
	@.venv/bin/pre-commit install

docs: .venv/.installed  ## regenerate docs/configuration.md from the code
	@.venv/bin/python -m jobs.write_reference_page

ui: .venv/.installed  ## open the MLflow UI for local runs, on 127.0.0.1 only
	@mkdir -p runs
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow ui --backend-store-uri sqlite:///runs/mlflow.db --host 127.0.0.1 $(ARGS)

mlflow-server: .venv/.installed  ## start an MLflow server for several machines, on PostgreSQL if available (cluster/mlflow_server.sh)
	@cluster/mlflow_server.sh

laptop-cluster: .venv/.installed  ## start an autoscaling Ray cluster of several nodes on this machine (cluster/laptop.sh)
	@cluster/laptop.sh

.venv/.installed: pyproject.toml constraints.txt
	@echo "Installing into .venv: some minutes the first time."
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install -q --disable-pip-version-check --use-pep517 -c constraints.txt -e ".[dev,server]"
	@touch $@

# Other libraries, each group in a folder of its own beside .venv.
.transformers/.installed: .venv/.installed
	@$(INSTALL) .transformers transformers
	@touch $@

.onnx/.installed: .venv/.installed
	@$(INSTALL) .onnx --no-deps onnx onnxruntime onnxscript onnx-ir ml-dtypes flatbuffers
	@touch $@

# Without dependencies: theirs pin older versions of numpy and transformers, and bring clients of every cloud.
.peers/.data: .venv/.installed
	@$(INSTALL) .peers --no-deps mosaicml-streaming litdata torchvision brotli catalogue cramjam python-snappy xxhash zstd
	@touch $@

.peers/.model: .venv/.installed
	@$(INSTALL) .peers --no-deps \
	  perceiver-io perceiver-pytorch einops fairscale pytorch-lightning lightning-utilities
	@touch $@

.chaos/.installed: .venv/.installed
	@$(INSTALL) .chaos --no-deps libfaketime
	@touch $@
