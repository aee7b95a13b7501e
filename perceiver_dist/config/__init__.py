"""A run's configuration: its options and their checks, the command line, and the forms it is recorded in."""
