"""What `jobs/benchmark.py` measures, each beside what people would use instead; nothing else imports this."""
