"""A model as one readable file of plain JAX, with the library's bits and without the library."""

from jaxformer.one_file.render import render
from jaxformer.one_file.source import Source, read_source
from jaxformer.one_file.write import check_target, write_one_file

__all__ = ["Source", "check_target", "read_source", "render", "write_one_file"]
