"""Configuration of runs: options and their checks, command line and YAML, credentials."""
