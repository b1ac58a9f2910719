"""Configuration, state, step, optimizer, loop, checkpoints, metrics."""
