"""Training by a recipe: what it builds, the loop, one step, checkpoints, logs."""
