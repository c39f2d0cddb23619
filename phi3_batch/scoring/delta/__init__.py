"""Delta tables: what is read, what is written and committed once, what the history says."""
