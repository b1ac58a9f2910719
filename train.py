"""Train a model: ``python train.py --config configs/gpt_nano.yaml [key.path=value ...]``; ``--help`` lists all keys."""

import sys

from jaxformer.cli import train_command

if __name__ == "__main__":
    sys.exit(train_command(sys.argv[1:]))
