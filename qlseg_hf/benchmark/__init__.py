"""Programs that measure time and memory against a baseline of the same run."""
