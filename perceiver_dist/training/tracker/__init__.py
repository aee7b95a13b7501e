"""The tracker actor of a run: status, restarts, throughput, Prometheus metrics and quarantine."""
