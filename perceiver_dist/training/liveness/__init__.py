"""Liveness of a run: what each rank does, when that counts as a hang, and how hung processes are ended."""
