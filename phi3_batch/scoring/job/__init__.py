"""A job from its options to its last commit: planned, cut into chunks, run, retried."""
