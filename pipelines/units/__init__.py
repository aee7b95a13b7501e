"""Units (micro-batches): their plan, the schedule of sources, and an ordered Ray Dataset of them."""
