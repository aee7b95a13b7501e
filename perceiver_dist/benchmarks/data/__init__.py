"""Benchmark of reading and decoding, against other libraries on the same samples."""
