"""Rows that an objective cannot use: each is named with its file and line, and all are counted."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxformer.schema import UserError
from jaxformer.tasks.records import Record, where

logger = logging.getLogger(__name__)

BadRows = Literal["report", "error"]
MOST_NAMED = 3  # places that a warning names for each reason


class BadRow(Exception):  # noqa: N818  what the data is, no error of the program
    """Why a row cannot be used."""


@dataclass
class Tally:
    """What became of the rows of a split.

    Attributes:
        policy: ``report`` leaves a bad row out and says so, ``error`` stops at the first.
        total: rows read.
        left_out: file and line of each row that was left out, and why.
        cut: file and line of each row whose response was cut to fit.
    """

    policy: BadRows = "report"
    total: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def leave_out(self, record: Record, reason: str) -> None:
        """Notes a row that cannot be used.

        Raises:
            UserError: if the policy is ``error``.
        """
        if self.policy == "error":
            raise UserError(f"{where(record)}: {reason}; mend the row, or set task.bad_rows to report")
        self.left_out.append((where(record), reason))

    def report(self, context: str = "") -> None:
        """Says what was left out and what was cut, a warning for each reason.

        Raises:
            UserError: if nothing is left.
        """
        reasons: dict[str, list[str]] = {}
        for place, reason in self.left_out:
            reasons.setdefault(reason, []).append(place)
        if self.total and len(self.left_out) == self.total:
            place, reason = self.left_out[0]
            raise UserError(f"none of the {self.total:,} rows can be used, the first is {place}: {reason}")
        for reason, places in reasons.items():
            logger.warning(
                "left out %s of %s rows: %s (%s)", f"{len(places):,}", f"{self.total:,}", reason, _few(places)
            )
        if self.cut:
            logger.warning(
                "cut %s of %s responses%s (%s)", f"{len(self.cut):,}", f"{self.total:,}", context, _few(self.cut)
            )


def _few(places: Sequence[str]) -> str:
    """The first places, and how many more there are."""
    more = f" and {len(places) - MOST_NAMED:,} more" if len(places) > MOST_NAMED else ""
    return "; ".join(places[:MOST_NAMED]) + more
