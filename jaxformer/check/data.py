"""Checks of the data of a run."""

from jaxformer.check.outcome import Checks

CHECKS = Checks("data")
