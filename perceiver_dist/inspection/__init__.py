"""Display of inspected shards: tables for a terminal, and a page of samples for a browser."""
