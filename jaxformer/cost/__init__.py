"""What a training step costs: a dry run from shapes, and compiling for accelerators that need not be here."""
