"""Ray clusters: connecting to one or starting one, and waiting until it has capacity."""
