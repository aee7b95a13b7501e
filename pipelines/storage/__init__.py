"""Files by path or URI, with retries."""
