"""Checkpoints of the published implementation: reading a stranger's file, its configuration text, the key table."""
