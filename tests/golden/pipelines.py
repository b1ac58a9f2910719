"""What ``transformers.pipeline`` answers for the cases of ``tests/pipelines/cases.py``.

    pip install -e ".[test,parity]" && python -m tests.golden.pipelines

The models are drawn by this library and saved; the answers are PyTorch's.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "pipelines.json"


def plain(value):
    """Numbers of NumPy as Python's, rounded."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 6)
    return value.item() if isinstance(value, np.generic) else value


def main():
    import transformers

    from tests.pipelines.cases import CASES, answer, save_models

    with tempfile.TemporaryDirectory() as folder:
        folders = save_models(Path(folder))
        answers = {name: plain(answer(transformers.pipeline, folders, name)) for name in CASES}
    rows = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in answers.items())
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
