"""Looking at shards before anything learns from them: is all of it readable, what is there, what does it look like."""
