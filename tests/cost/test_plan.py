"""The search for a plan: what it tries, in which order, and what it leaves out; with libtpu, on a real target."""

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxformer.commands.plan import token_count
from jaxformer.cost import plan as module
from jaxformer.cost.compile_for import shape_run
from jaxformer.cost.plan import Candidate, Estimate, Plan, Price, candidates, estimate, model_of, search
from jaxformer.training.sources import resolve_config
from tests.cost.test_compile_for import CHIP, COST, PEAK
from tests.training.helpers import tiny_keys

ROOT = Path(__file__).parent.parent.parent
FREE = dataclasses.replace(COST, moved=0.0, operations=[], waited_for=[])  # of all but the products
BASE = Candidate(1, 1, 1, 1, "none", 8, 1, 2048)


def config_of(tmp_path, **model):
    keys = tiny_keys(tmp_path, batch_size=16)
    keys["model"] |= {"vocab_size": 400, **model}
    return resolve_config(keys, "the test")


def test_candidates_divide_evenly(tmp_path):
    """Two heads: no more than two chips under tensor; 16 rows over 8 chips: one or two parts."""
    config = config_of(tmp_path, num_heads=2)
    found = list(candidates(config, 8, [16]))
    assert len(found) == len(set(found))
    assert {one.tensor for one in found} == {1, 2}
    assert {one.fsdp for one in found if one.tensor == 1} == {1, 2, 4, 8}
    assert {one.accumulate for one in found if one.tensor == 1} == {1, 2}
    assert {one.accumulate for one in found if one.tensor == 2} == {1, 2, 4}
    assert {one.sequence for one in found} == {1} and {one.remat for one in found} == set(module.REMAT)
    assert not list(candidates(config, 8, [3]))


def test_a_candidate_is_the_overrides_of_a_configuration(tmp_path):
    config = config_of(tmp_path)
    for one in list(candidates(config, 8, [16]))[::7]:
        keys = tiny_keys(tmp_path)
        keys["model"] |= {"vocab_size": 400}
        for override in one.overrides:
            path, value = override.split("=")
            section, key = path.split(".")
            keys.setdefault(section, {})[key] = int(value) if value.lstrip("-").isdecimal() else value
        run = shape_run(resolve_config(keys, "the test"), jax.devices())
        assert run.mesh.shape["fsdp"] == one.fsdp and run.mesh.shape["tensor"] == one.tensor
        assert run.config.training.accumulate == one.accumulate and run.config.model.remat == one.remat


def test_the_estimate_by_hand(tmp_path):
    """1,000 parameters on four chips, two of them fsdp: gathered twice and reduced once, float32, by rings of two."""
    c = config_of(tmp_path).model
    model = module.Model(1000, 4 * PEAK, c, 16)
    found = estimate(BASE._replace(fsdp=2), model, CHIP, 4)
    assert found.seconds == 8.0  # 8 rows of 4 chip-seconds on 4 chips
    assert found.state == 12 * 1000 / 2
    rows, width = 8 // 4, c.hidden_size
    inner = c.inner_size / width
    # Two block inputs or sums, attention's addend, q, k, v, before and after the activation, its output, two norms.
    values = 2 + 1 + 3 + 2 * inner + 1 + 2
    assert module.kept_values(c, "none") == values
    assert found.bytes == found.state + 4 * 1000 / 2 + rows * 16 * width * 4 * (c.num_layers + 2) * values
    assert module.kept_values(c, "full") == 1 < module.kept_values(c, "dots") < values
    slow = CHIP._replace(ici_bandwidth=1.0)
    sent = 3 * 1000 * 4 * 1 / 2 + 2 * 1000 * 4 / 2 * 1 / 2
    assert estimate(BASE._replace(fsdp=2), model._replace(flops=0.0), slow, 4).seconds == sent
    assert estimate(BASE._replace(remat="full"), model, CHIP, 4).seconds == pytest.approx(8.0 * 4 / 3)


def test_flops_of_a_row_leave_out_what_a_causal_mask_hides(tmp_path):
    keys = tiny_keys(tmp_path)
    keys["model"] |= {"vocab_size": 400}
    for override in module.ONE_ROW:
        path, value = override.split("=")
        section, key = path.split(".")
        keys.setdefault(section, {})[key] = int(value)
    run = shape_run(resolve_config(keys, "the test"), jax.devices()[:1])
    c, length = run.config.model, run.config.sequence_length
    model = model_of(run)
    hidden = 12 * c.num_layers * c.num_heads * c.head_width * (length**2 - length * (length + 1) / 2)
    assert model.flops == pytest.approx(run.flops_per_step - hidden)
    assert model.parameters == sum(leaf.size for leaf in jax.tree.leaves(run.division.shapes))


def fake(times):
    """A compiler whose programs take these seconds; None: it does not fit. It notes what it compiled."""
    compiled = []

    def compile_one(candidate):
        compiled.append(candidate)
        seconds = times(candidate)
        return None if seconds is None else dataclasses.replace(FREE, flops=seconds * PEAK)

    return compile_one, compiled


def test_what_does_not_fit_rules_out_what_needs_more():
    tried = [BASE, BASE._replace(remat="full"), BASE._replace(remat="dots"), BASE._replace(remat="dots", accumulate=2)]
    ordered = [(one, Estimate(0.1, 0.0, 0.0, 0.0)) for one in (tried[2], tried[0], tried[3], tried[1])]
    compile_one, compiled = fake(lambda one: 1.0 if one.accumulate == 2 or one.remat == "full" else None)
    plans = search(ordered, compile_one, CHIP, 16, 10)
    # remat none keeps more than dots, which did not fit.
    assert compiled == [tried[2], tried[3], tried[1]]
    assert {plan.candidate for plan in plans} == {tried[3], tried[1]}


def test_what_fits_rules_out_what_only_computes_more():
    ordered = [
        (one, Estimate(0.1, 0.0, 0.0, 0.0)) for one in (BASE, BASE._replace(remat="full"), BASE._replace(fsdp=2))
    ]
    compile_one, compiled = fake(lambda one: 1.0 / one.fsdp)
    plans = search(ordered, compile_one, CHIP, 16, 10)
    assert compiled == [BASE, BASE._replace(fsdp=2)]
    assert [plan.candidate.fsdp for plan in plans] == [2, 1]


def test_it_ends_where_no_estimate_is_below_the_fifth_best():
    many = [BASE._replace(fsdp=2**n) for n in range(8)]
    ordered = [(one, Estimate(0.5 + n, 0.0, 0.0, 0.0)) for n, one in enumerate(many)]
    compile_one, compiled = fake(lambda one: 2.0)
    assert len(search(ordered, compile_one, CHIP, 16, 10)) == module.BEST
    assert compiled == many[: module.BEST]
    compile_one, compiled = fake(lambda one: 2.0)
    assert len(search(ordered, compile_one, CHIP, 16, 3)) == 3


def test_the_best_is_tried_with_other_chunks(tmp_path):
    model = module.Model(1000, 4 * PEAK, config_of(tmp_path).model, 16)
    tried = [one.chunk_tokens for one, _ in module.other_chunks(BASE, model, CHIP, 4)]
    assert tried == [1024, 4096, 8192]
    assert module.other_chunks(BASE._replace(chunk_tokens=None), model, CHIP, 4) == []


def test_a_row_by_hand():
    """0.8 s for 8 rows of 16 tokens: 128 tokens; 1.28 million tokens take 8,000 s."""
    row = module.row(Plan(BASE._replace(fsdp=2), FREE), CHIP, 16, 4, Price(1_280_000, 2.0))
    assert row["mesh"] == "data 2 x fsdp 2"
    assert row["compute / memory / network / in turn, ms"] == "800 / 0 / 0 / 0"
    assert row["hours at least"] == "2.2" and row["cost at least"] == "18"  # 8000/3600 h x 4 chips x 2
    assert module.row(Plan(BASE, FREE), CHIP, 16, 1, Price(None, 2.0))["cost at least"] == ""


def test_a_number_of_tokens_is_refused_in_one_line():
    for text in ("many", "-3B", "0"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number of tokens like 20B"):
            token_count(text)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_plans_for_a_described_target(tmp_path):
    """Of a small model the five best fit, are in order, and say what to paste."""
    pytest.importorskip("libtpu")
    config = tmp_path / "small.yaml"
    config.write_text(
        "model: {type: gpt2, vocab_size: 512, hidden_size: 256, num_layers: 2, num_heads: 4, max_length: 256}\n"
        "data: {path: nowhere}\ntraining: {batch_size: 32}\n"
    )
    command = [sys.executable, "-m", "jaxformer", "plan", "--config", str(config), "--chips", "v5e:4"]
    done = subprocess.run(
        [*command, "--tokens", "1B", "--price", "1.2", "--most", "2"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("1: ", "2: "))]
    assert all("parallel.fsdp=" in line and "model.remat=" in line for line in lines) and len(lines) == 2
    assert "hours at least" in done.stdout and "searched" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--chips", "v9:8", "model.vocab_size=256"], "--chips v9:8: expected CHIP:TOPOLOGY"),
        (["--chips", "v5e:8", "--most", "0"], "--most is 0, expected 1 or more"),
        (["--chips", "v5e:8", "--tokens", "many"], "expected a number of tokens like 20B"),
        (["--chips", "v5e:8", "--batch-sizes", "8,none"], "expected numbers of rows like 512 or 512,1024"),
        (["--chips", "v5e:8", "--batch-sizes", "0"], "expected numbers of rows like 512 or 512,1024"),
        (["--chips", "v5e:8"], "expected model.vocab_size and an objective on text"),
    ],
)
def test_bad_options_are_one_line(arguments, said, capsys):
    from jaxformer import cli

    try:
        code = cli.run("plan", ["--config", str(ROOT / "configs/gpt_nano.yaml"), *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_what_is_estimated_no_smaller_than_what_did_not_fit_comes_last():
    sizes = {BASE: 5.0, BASE._replace(fsdp=2): 6.0, BASE._replace(fsdp=4): 1.0}
    ordered = [(one, Estimate(0.1, 0.0, size, 0.0)) for one, size in sizes.items()]
    compile_one, compiled = fake(lambda one: 1.0 if one.fsdp == 4 else None)
    search(ordered, compile_one, CHIP, 16, 10)
    assert [one.fsdp for one in compiled] == [1, 4, 2]
