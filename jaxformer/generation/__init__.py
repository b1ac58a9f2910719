"""Text from models."""

from jaxformer.generation.sample import sample

__all__ = ["sample"]
