"""A web page for a pipeline, on one's own machine; needs the extra ``demo``."""

from jaxformer.demo.page import build_page

__all__ = ["build_page"]
