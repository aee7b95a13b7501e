"""How what is in shards is shown: tables for a terminal, and a page of samples for a browser."""
