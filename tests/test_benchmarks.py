"""The benchmarks run and print their table; the peers do the same work. How fast anything is, no test asks."""

import collections
import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.families import build_model
from jaxformer.pipelines.opened_model import Opened
from tests.tasks.tiny import config_of, random_params
from tests.training.helpers import run_training, tiny_keys

FOLDER = Path(__file__).parent.parent / "benchmarks"
# Of each benchmark the implementations that its table names.
PEERS = {
    "train_step": ("plain GPT, torch.compile", "plain GPT, PyTorch eager", "Hugging Face, PyTorch eager"),
    "bert_step": (
        "Hugging Face, predicted tokens, torch.compile",
        "Hugging Face, predicted tokens, PyTorch eager",
        "Hugging Face, torch.compile",
        "Hugging Face, PyTorch eager",
    ),
}

each = pytest.mark.parametrize("benchmark", PEERS)


def run_tiny(benchmark, *options):
    script = FOLDER / f"{benchmark}.py"
    command = [sys.executable, script, "--shapes", "tiny", "--repeats", "1", "--seconds", "0", *options]
    return subprocess.run(command, capture_output=True, text=True)


@each
@pytest.mark.slow
def test_alone_it_prints_its_table(benchmark):
    result = run_tiny(benchmark, "--markdown")
    assert result.returncode == 0, result.stderr
    header, marks, row = (line.split(" | ") for line in result.stdout.splitlines()[3:])
    assert header[1:3] == ["implementation", "median ms"]
    assert len(header) == len(marks) == len(row)
    assert row[1] == "jaxformer"
    assert float(row[2]) >= float(row[3]) > 0


@pytest.mark.parity
@each
def test_peers_take_part_only_with_equal_losses(benchmark):
    result = run_tiny(benchmark, "--compare", "torch")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("losses of the first 3 steps agree") == len(PEERS[benchmark])
    for name in ("jaxformer", *PEERS[benchmark]):
        assert name in result.stdout


@each
def test_a_missing_peer_is_one_line(benchmark):
    # As if torch were not installed, wherever the test runs.
    code = "import importlib, sys; sys.path.insert(0, sys.argv[1]); sys.modules['torch'] = None; "
    code += "benchmark = sys.argv[2]; del sys.argv[1:3]; sys.exit(importlib.import_module(benchmark).main())"
    command = [sys.executable, "-c", code, FOLDER, benchmark, "--compare", "torch"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: torch")
    assert 'pip install -e ".[benchmark]"' in result.stderr
    assert result.stderr.count("\n") == 1


def write_tiny(*options):
    command = [sys.executable, FOLDER / "generate.py", "--sizes", "tiny", "--rounds", "1", "--batches", "2", *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_generation_prints_its_table():
    result = write_tiny("--markdown", "--kinds", "int8")
    assert result.returncode == 0, result.stderr
    header, _, *rows = (line.strip("| ").split(" | ") for line in result.stdout.splitlines()[3:])
    assert header[2] == "tokens/s" and [row[1] for row in rows] == ["jaxformer", "jaxformer, int8 weights"]
    assert all(float(row[2]) > 0 and row[-1].endswith("%") for row in rows)


@pytest.mark.parity
def test_generation_beside_a_peer_that_writes_the_same():
    result = write_tiny("--compare", "torch", "--kinds", "as loaded")
    assert result.returncode == 0, result.stderr
    assert "transformers, PyTorch" in result.stdout


@pytest.mark.slow
def test_the_profile_of_a_configuration_has_its_products_and_all_else(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({**tiny_keys(tmp_path), "output_dir": str(tmp_path / "run")}), encoding="utf-8")
    command = [sys.executable, FOLDER / "profile_cpu.py", "--config", config, "--markdown"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER)
    assert result.returncode == 0, result.stderr
    assert "its products alone" in result.stdout and "| matrix products |" in result.stdout
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    products = [row for row in rows if row[0].endswith(" float32")]
    assert len(products) > 3 and sum(float(row[2]) for row in products) > 0  # one of tiny matrices may take 0.0 ms
    refused = subprocess.run([*command, "parallel.strategy=pmap"], capture_output=True, text=True, cwd=FOLDER)
    assert refused.returncode == 2 and refused.stderr.startswith("error: this profile is of steps")


def run_gpu(*options):
    return subprocess.run([sys.executable, FOLDER / "gpu.py", *options], capture_output=True, text=True)


@pytest.mark.parity
def test_what_is_to_be_shown_on_a_gpu_runs_without_one():
    """The command itself: both sides start, have the same losses and write the same tokens."""
    result = run_gpu("--device", "cpu", "--sizes", "tiny", "--no-tests", "--markdown")
    assert result.returncode == 0, result.stderr
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    trained, written = [row for row in rows if ": 2 x 16" in row[0]], [row for row in rows if row[0].isdigit()]
    assert [row[1] for row in trained] == ["jaxformer", "PyTorch"] * 2 and [row[0] for row in written] == [*"1122"]
    assert all(row[-1] == "100%" for row in written)


def test_without_a_gpu_it_is_one_line():
    result = run_gpu()
    assert result.returncode == 2 and result.stderr.startswith("error: there is no CUDA device")
    assert result.stderr.count("\n") == 1


STAGES = ("reward", "sft")


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def assistant(tmp_path_factory):
    """A base model, one tuned on instructions and a reward model, a few steps each."""
    folder = tmp_path_factory.mktemp("assistant")
    words = ("cat", "dog", "mat", "hat", "bat", "rat")
    rows = [{"prompt": f"{a} {b}?", "chosen": " yes", "rejected": " no"} for a in words for b in words]
    for name, lines in (
        ("pairs", rows),
        ("answers", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    keys = tiny_keys(folder, steps=2)
    run_training(keys)
    data = {**keys["data"], "validation_fraction": 0.3}
    for name, file, task, start in (
        ("sft", "answers", {"type": "instruction"}, "run"),
        ("reward", "pairs", {"type": "reward"}, "sft"),
    ):
        model = {"pretrained": str(folder / start), "dropout": 0.0}
        run = {**keys, "model": model, "task": task, "output_dir": str(folder / name)}
        run["training"] = {**keys["training"], "steps": 20}
        run_training({**run, "data": {**data, "path": str(folder / f"{file}.jsonl")}})
    return folder


@pytest.mark.slow
def test_stages_of_an_assistant(assistant):
    names = [str(assistant / name) for name in ("sft", "run")]
    command = [sys.executable, FOLDER / "assistant.py", *names, "--reference", names[0], "--markdown"]
    command += ["--reward", str(assistant / "reward"), "--max-new-tokens", "4", "--n", "3"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    title, _, header, _, sft, base, _, pairs, losses = result.stdout.splitlines()
    held_out = records(assistant / "reward" / "predictions.jsonl")
    assert title.startswith(f"3 texts at temperature 1 for each of {len(held_out)} prompts held out")
    assert header.count("|") == sft.count("|") == base.count("|") == 7
    cells = [cell.strip() for cell in sft.strip("| ").split(" | ")]
    assert cells[0] == names[0] and cells[3].lstrip("-") == "0.000 ± 0.000"
    kl, half = (float(part) for part in base.split(" | ")[3].split(" ± "))
    assert kl > half > 0
    # Both numbers below the table are those that the runs wrote themselves.
    reward, tuned = ([r for r in records(assistant / n / "metrics.jsonl") if r["split"] == "eval"][-1] for n in STAGES)
    assert f"pair accuracy {reward['pair_accuracy']:.3f} on {len(held_out)} pairs held out" in pairs
    assert f"answers held out {tuned['loss']:.4f}, of {assistant / 'run'}, which it starts from" in losses
    wrong = [*command[:3], "--reference", str(assistant / "reward"), *command[6:]]
    result = subprocess.run(wrong, capture_output=True, text=True)
    assert result.returncode == 2 and "expected a decoder with a language-model head" in result.stderr


def test_intervals_of_an_assistant(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("assistant")
    # 0 and 2: mean 1, standard deviation sqrt 2, over two prompts: 1.96 sqrt 2 / sqrt 2.
    assert module.with_interval(np.array([0.0, 2.0])) == "1.000 ± 1.960"
    # Newcombe 1998, table I: 81 of 263 by the score method without continuity correction.
    assert module.proportion_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.slow
def test_log_probs_of_an_assistant_are_those_of_each_token(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("assistant")
    model = build_model(config_of("gpt2"))
    params = random_params(model)
    reference = Opened("", model, params, None)
    prompts, texts = [[1, 2, 3], [4], [5, 6]], [[7, 8], [9, 10, 11], [12]]
    found = module.reference_log_probs(reference, prompts, texts)
    for value, prompt, text in zip(found, prompts, texts, strict=True):
        logits = np.asarray(model.apply({"params": params}, np.array([prompt + text])).logits[0], np.float64)
        each = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        assert value == pytest.approx(sum(each[len(prompt) - 1 + n, t] for n, t in enumerate(text)), abs=1e-4)


def test_learning_curves_are_drawn(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("learning_curves")
    for name, sign in (("up", 1), ("down", -1)):
        (tmp_path / name).mkdir()
        lines = [{"step": step, "split": "train", "score": sign * step, "kl": step / 2} for step in range(1, 8)]
        lines.append({"step": 8, "split": "eval", "score": 9.0})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert [record["step"] for record in module.records(tmp_path / "up")] == list(range(1, 8))
    np.testing.assert_allclose(module.smoothed([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), [1, 1.5, 2, 2.5, 3, 4])
    module.draw([tmp_path / "up", tmp_path / "down"], tmp_path / "out.png", "a title")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_lengths_of_files():
    command = [sys.executable, FOLDER / "one_file_lengths.py", "--families", "gpt2"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    header, _, row = (line.strip("| ").split(" | ") for line in result.stdout.splitlines())
    assert len(row) == len(header) and row[:2] == ["gpt2", "decoder"] and row[-1] == "yes"
    lines, code, model = map(int, row[2:5])
    assert lines > code > model > 50


def test_lines_of_switches(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("switches")
    # Properties of the configuration count for the switches that they read, also through others.
    assert module.names_of("logits_bias") == {"logits_bias"}
    assert "has_mixed_windows" in module.names_of("global_every") - module.names_of("gated")
    monkeypatch.setattr(sys, "argv", ["switches.py", "--markdown"])
    module.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    found = {row[0].strip("`"): int(row[1]) for row in rows}
    assert {"gated", "rotary_adjacent", "mixer"} <= set(found) and not set(found) & set(module.LEFT_OUT)
    # What no module reads would be a switch without an effect; the decoder's sizes are read by ``decoder_side``.
    assert {switch for switch, lines in found.items() if lines == 0} == {
        *("num_decoder_layers", "num_decoder_heads", "decoder_intermediate_size", "decoder_embedding_norm"),
        "project_context",
    }
    assert next(row for row in rows if row[0] == "`parallel_residual`")[2] == "gptj, gpt_neox, phi"
    (tmp_path / "layers.py").write_text("x = c.gated\ny = c.gated + c.ungated\nz = c.gated_too\n")
    (tmp_path / "config.py").write_text("x = c.gated\n")
    monkeypatch.setattr(module, "MODULES", tmp_path)
    assert module.lines_of("gated") == 2 and module.lines_of("mixer") == 0


def test_products_of_a_traced_step_by_hand(monkeypatch):
    """A scan of 3 turns, forward and two products backward; heads are a batch of products."""
    monkeypatch.syspath_prepend(FOLDER)
    floor = importlib.import_module("_floor")

    def loss(weights, x, heads):
        x = jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]
        return jnp.sum(x) + jnp.sum(jnp.einsum("bnth,bnsh->bnts", heads, heads))

    traced = jax.make_jaxpr(jax.grad(loss))(jnp.ones((3, 4, 4)), jnp.ones((8, 4)), jnp.ones((2, 5, 6, 7)))
    found = collections.Counter()
    for product, times in floor.products(traced.jaxpr):
        found[product] += times
    forward, to_weights = floor.Product(1, 8, 4, 4, "float32"), floor.Product(1, 4, 8, 4, "float32")
    assert found[forward] == 6 and found[to_weights] == 3  # to the input they have the forward pass's shape
    assert floor.Product(10, 6, 7, 6, "float32") in found
    assert forward.flops == 2 * 8 * 4 * 4
    assert floor.time_product(forward) > 0
