"""Cost of a training step: a dry run from shapes, and compilation for accelerators that are not present."""
