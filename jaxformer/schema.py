"""The two things every layer shares: the base of the typed configuration and the error a user can cause."""

from pydantic import BaseModel, ConfigDict


class UserError(ValueError):
    """Something the user can mend: the message says what was got, what was expected and what to do.

    The command line prints it as one line and exits with code 2.
    """


class Schema(BaseModel):
    """Base of every configuration section: unknown keys are refused and values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
