"""Train a model: ``python train.py --config configs/gpt_nano.yaml [key.path=value ...]``; ``--help`` lists all keys."""

import sys

from jaxformer.cli import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:], "train.py"))
