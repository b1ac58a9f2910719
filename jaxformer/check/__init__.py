"""The correctness contract as checks of the user's own model, data, devices and training step."""

from jaxformer.check.outcome import Check, Checks, DoesNotApplyError, Measured, Outcome, outcomes

__all__ = ["Check", "Checks", "DoesNotApplyError", "Measured", "Outcome", "outcomes"]
