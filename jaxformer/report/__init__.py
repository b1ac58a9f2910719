"""The page of a run: what ``report.json`` and ``metrics.jsonl`` hold, as one HTML file that needs no network."""

from jaxformer.report.contents import Answer, Change, Contents, Passage, Pictures, Piece, Row, Score
from jaxformer.report.page import comparison_page, leaderboard_page, run_page

__all__ = [
    "Answer",
    "Change",
    "Contents",
    "Passage",
    "Pictures",
    "Piece",
    "Row",
    "Score",
    "comparison_page",
    "leaderboard_page",
    "run_page",
]
