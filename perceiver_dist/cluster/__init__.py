"""Ray: connecting to a cluster or starting one, and waiting until it has room."""
