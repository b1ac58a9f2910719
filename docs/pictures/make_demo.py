"""Makes docs/pictures/demo.png: two small models trained here, their pages in a real browser.

python docs/pictures/make_demo.py DATA [RUNS]

DATA has sst2/train.jsonl.gz, sst2/dev.jsonl.gz and tinyshakespeare/input.txt; RUNS is where the models are trained, in
twelve minutes of processor time, and found again. Needs the extra demo, playwright and Debian's chromium.
"""

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import jaxformer
from jaxformer.demo.page import build_page, launch_options

ROOT = Path(__file__).parents[2]
SIZE = {"width": 960, "height": 400}
# For an answer.
SECONDS = 20
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]

REVIEW = "the jokes are old , but the cast is charming"
VERSE = "ROMEO:\nWhat light is this"


def with_names(source: Path, target: Path) -> Path:
    """The file of reviews with labels that say what they mean."""
    with gzip.open(source, "rt") as lines, target.open("w") as out:
        for line in lines:
            record = json.loads(line)
            record["label"] = ("negative", "positive")[int(record["label"])]
            out.write(json.dumps(record) + "\n")
    return target


def train(config: str, folder: Path, *overrides: str) -> None:
    """A run of the training command; one that is finished ends at once."""
    command = [sys.executable, "train.py", "--config", f"configs/{config}.yaml", f"output_dir={folder}", *overrides]
    subprocess.run(command, cwd=ROOT, check=True)


def train_both(data: Path, runs: Path) -> None:
    """The runs ``film_reviews`` and ``shakespeare``."""
    runs.mkdir(parents=True, exist_ok=True)
    paths = [with_names(data / "sst2" / f"{part}.jsonl.gz", runs / f"{part}.jsonl") for part in ("train", "dev")]
    train(
        "sst2",
        runs / "film_reviews",
        f"data.path={paths[0]}",
        f"data.validation_path={paths[1]}",
        "task.labels=[negative, positive]",
    )
    train("gpt_nano", runs / "shakespeare", f"data.path={data / 'tinyshakespeare' / 'input.txt'}")


def photograph(page: Page, out: Path, model: Path, text: str, button: str, **options: int) -> Path:
    """The page of a model with a text and its answer."""
    blocks = build_page(jaxformer.pipeline(model=str(model), **options))
    address = blocks.launch(**launch_options("127.0.0.1", None))[1]
    page.goto(address)
    page.get_by_role("textbox", name="Text").first.fill(text)
    page.get_by_role("button", name=button).click()
    page.wait_for_timeout(1000 * SECONDS)
    page.screenshot(path=out)
    blocks.close(verbose=False)
    return out


def main() -> None:
    """Trains, photographs, and puts the pictures under each other."""
    data = Path(sys.argv[1]).resolve()
    runs = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp()).resolve()
    train_both(data, runs)
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport=SIZE)
        parts = [
            photograph(page, runs / "first.png", runs / "film_reviews", REVIEW, "Classify"),
            photograph(page, runs / "second.png", runs / "shakespeare", VERSE, "Write", max_new_tokens=44, seed=1),
        ]
        browser.close()
    images = [Image.open(part).convert("RGB") for part in parts]
    whole = Image.new("RGB", (SIZE["width"], sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    whole.quantize(256).save(Path(__file__).with_name("demo.png"), optimize=True)


if __name__ == "__main__":
    main()
