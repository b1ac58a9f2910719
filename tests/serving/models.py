"""Tiny models of every use that a server has, and their application."""

from contextlib import contextmanager

from fastapi.testclient import TestClient

from jaxformer.serving.app import build_app
from jaxformer.serving.served import Limits, open_served
from tests.pipelines import tiny

TASKS = {"writer": "writes", "judge": "number", "classes": "classes", "encoder": "states", "rewriter": "rewrites"}
LIMITS = Limits(slots=2, waiting=8, seconds=60)


def save(folder):
    """The folders of the models, by their names."""
    return {name: str(tiny.save(folder / name, what)) for name, what in TASKS.items()}


@contextmanager
def client(folders, limits=LIMITS, names=(), **options):
    """A client in the same process; ``names`` are the models to open, default all."""
    chosen = [folders[name] for name in names or folders]
    served = open_served(chosen, limits, **({} if names else {"pooling": "mean", "normalize": True}))
    app = build_app(served, limits, **options)
    with TestClient(app, raise_server_exceptions=False) as made:
        made.served = served
        yield made
