"""The cost of a step, from what is compiled: on simulated CPU devices, and for TPUs where libtpu is installed."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxformer.cost import compile_for as module
from jaxformer.cost.compile_for import StepCost, report, shape_run, step_cost, too_large
from jaxformer.cost.hlo import Collective
from jaxformer.cost.hlo_cost import Operation
from jaxformer.cost.topology import Chip, described_devices
from jaxformer.schema import UserError
from jaxformer.training.sources import load_config, resolve_config
from jaxformer.training.state import count_parameters
from tests.training.helpers import make_run, quiet, tiny_keys

ROOT = Path(__file__).parent.parent.parent
PEAK = 197e12
CHIP = Chip("TPU v5 lite", hbm=2**30, hbm_bandwidth=1e9, ici_bandwidth=1e8, dcn_bandwidth=1e6)
COST = StepCost(
    parameters=10,
    optimizer=20,
    activations=30,
    peak=70,
    model_flops=0.5 * PEAK,
    flops=0.8 * PEAK,
    moved=1e9,
    collectives=[Collective("all-reduce", 1000, 2, 3), Collective("all-gather", 4000, 4, 10)],
    waited_for=[Collective("all-reduce", 1000, 2, 2)],
    operations=[Operation(3, 0.25 * PEAK, 1e8), Operation(2, 0.025 * PEAK, 3e8)],
    kernels=[],
    seconds=1.0,
)


def test_the_bound_is_a_roofline_by_hand():
    """Sent: 3 x 2 x 1/2 x 1000 + 10 x 3/4 x 4000 = 33,000 bytes. In turn: 3 x 0.25 s, 2 x 0.3 s, 2,000 bytes sent."""
    assert COST.sent == 33_000
    times = COST.times(CHIP)
    assert times["in turn"] == pytest.approx(0.75 + 0.6 + 2000 / 1e8)
    assert times == {"compute": 0.8, "memory": 1.0, "network": 0.00033, "in turn": times["in turn"]}
    assert COST.mfu_bound(CHIP) == pytest.approx(0.5 / 1.35002)
    alone = dataclasses.replace(COST, operations=[], waited_for=[])
    assert alone.mfu_bound(CHIP) == pytest.approx(0.5 / 1.0)
    assert dataclasses.replace(alone, moved=0.0).mfu_bound(CHIP) == pytest.approx(0.5 / 0.8)


def sizes(run):
    return {name: (shape.shape, shape.dtype) for name, shape in run.batch_shapes.items()}


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm", "span_corruption", "denoising"])
def test_a_run_by_shape_has_the_shapes_of_the_real_one(task, tmp_path):
    model = {"causal_lm": "gpt2", "masked_lm": "bert", "span_corruption": "t5", "denoising": "bart"}[task]
    keys = tiny_keys(tmp_path)
    keys["model"] |= {"type": model, "vocab_size": 400, "max_length": 32}
    keys["task"] = {"type": task}
    real = make_run(keys)
    by_shape = shape_run(resolve_config(keys, "the test"), jax.devices())
    assert sizes(by_shape) == sizes(real)
    assert by_shape.flops_per_step == real.flops_per_step
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, by_shape.abstract, real.abstract))


def test_it_reads_no_data(tmp_path):
    keys = tiny_keys(tmp_path) | {"data": {"path": str(tmp_path / "nowhere")}}
    keys["model"] |= {"vocab_size": 400}
    assert sizes(shape_run(resolve_config(keys, "the test"), jax.devices()))["input_ids"][0] == (8, 16)


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    keys = tiny_keys(tmp_path, batch_size=12)
    with pytest.raises(UserError, match=r"training.batch_size is 12, expected a multiple of 8"):
        shape_run(resolve_config(keys, "the test"), jax.devices())


def test_the_cost_of_a_step_by_hand(tmp_path):
    """AdamW keeps two numbers a parameter and its counts; fsdp a quarter of what has a width; D=16, V=400, L=2."""
    keys = tiny_keys(tmp_path, batch_size=16)
    keys["model"] |= {"vocab_size": 400, "dropout": 0.0}
    keys["parallel"] = {"fsdp": 4}
    run = shape_run(resolve_config(keys, "the test"), jax.devices())
    cost = step_cost(run)
    split = 400 * 16 + 16 * 16 + 2 * (12 * 256 + 6 * 16) + 2 * 16  # all with an axis of width D
    whole = 2 * 7 * 16  # biases of queries, keys, values [N, H] and of the feed-forward [4 D]
    assert cost.parameters == 4 * (split // 4 + whole)
    assert 2 * cost.parameters <= cost.optimizer <= 2 * cost.parameters + 64
    # What multiplies: 6 numbers of operations a weight and token, and the scores, of which XLA computes all.
    matrices, tokens = 2 * 12 * 256 + 400 * 16, 16 * 16 // 8
    assert cost.flops == pytest.approx(6 * matrices * tokens + 12 * 2 * 16 * 16 * tokens, rel=0.35)
    assert cost.peak > cost.parameters + cost.optimizer
    assert {one.kind for one in cost.collectives} >= {"all-reduce", "all-gather"}


def test_what_is_too_large_says_what_to_change(tmp_path):
    run = shape_run(resolve_config(tiny_keys(tmp_path) | {"parallel": {"fsdp": 2}}, "the test"), jax.devices())
    line = str(too_large(run, CHIP, "v5e:2x4", "3.00 GiB, 2.00 GiB too much"))
    for part in ("v5e:2x4: the step needs 3.00 GiB, 2.00 GiB too much, expected at most 1.00 GiB a chip", "(now 2)"):
        assert part in line
    for key in ("parallel.fsdp", "training.accumulate", "model.remat", "training.batch_size"):
        assert key in line


def test_pmap_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "described_devices", lambda target: (CHIP, jax.devices()))
    config = resolve_config(tiny_keys(tmp_path) | {"parallel": {"strategy": "pmap"}}, "the test")
    with pytest.raises(UserError, match=r"parallel.strategy is pmap, expected jit"):
        module.compile_for(config, "v5e:2x4", quiet())


def test_more_memory_than_a_chip_has_is_refused_and_less_reported(tmp_path, monkeypatch):
    keys = tiny_keys(tmp_path)
    keys["model"] |= {"vocab_size": 400}
    config = resolve_config(keys, "the test")
    monkeypatch.setattr(module, "described_devices", lambda target: (CHIP, jax.devices()))
    monkeypatch.setattr(module, "step_cost", lambda run: dataclasses.replace(COST, peak=3 * 2**30))
    with pytest.raises(UserError, match=r"needs 3.00 GiB, 2.00 GiB too much, expected at most 1.00 GiB"):
        module.compile_for(config, "v5e:2x4", quiet())
    monkeypatch.setattr(module, "step_cost", lambda run: COST)
    assert module.compile_for(config, "v5e:2x4", quiet())["MFU at most"] == "37%"

    def refused(run):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: HLO temporaries (23.39G) exceeds available HBM (15.75G).")

    monkeypatch.setattr(module, "step_cost", refused)
    with pytest.raises(UserError, match=r"needs 23.39 GiB where XLA has 15.75 GiB, 7.64 GiB too much"):
        module.compile_for(config, "v5e:2x4", quiet())


def compile_for(*arguments, expect=0):
    """The command in a process of its own; needs the tpu extra."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == expect, result.stdout + result.stderr
    return result


SMALL = ("model.num_layers=2", "model.hidden_size=256", "model.num_heads=4", "training.batch_size=32")


@pytest.mark.slow
def test_the_step_of_a_model_compiles_for_a_tpu_with_its_attention_kernel():
    result = compile_for(
        "--config", "configs/gpt2_124m.yaml", "--compile-for", "v5e:2x4", *SMALL, "training.accumulate=2"
    )
    assert result.stderr == ""
    for word in ("splash_mha_dkv, splash_mha_dq, splash_mha_fwd", "of 16.00 GiB", "MFU at most", "all-reduce of"):
        assert word in " ".join(result.stdout.split()), result.stdout


@pytest.mark.slow
def test_sequence_and_tensor_parallelism_compile_with_the_kernel_too():
    axes = ("parallel.fsdp=2", "parallel.sequence=2", "parallel.tensor=2", "training.accumulate=1")
    result = compile_for("--config", "configs/gpt2_124m.yaml", "--compile-for", "v5p:2x2x2", *SMALL, *axes)
    assert "splash_mha_fwd" in result.stdout


@pytest.mark.slow
def test_a_model_that_does_not_fit_is_one_line_and_code_2():
    result = compile_for("--config", "configs/llama_7b.yaml", "--compile-for", "v5e:2x2", "parallel.fsdp=4", expect=2)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert "too much, expected at most 16.00 GiB a chip; raise parallel.fsdp (now 4)" in line


@pytest.mark.slow
def test_scanned_layers_are_one_program_whatever_their_number(tmp_path):
    """Compile time cannot grow with the depth: 48 layers are as many instructions as 12."""
    from jaxformer.cost.hlo import parse_program
    from jaxformer.cost.topology import described_devices

    def instructions(layers):
        keys = [*SMALL[1:], "training.accumulate=2", f"model.num_layers={layers}"]
        run = shape_run(load_config(ROOT / "configs/gpt2_124m.yaml", keys), described_devices("v5e:2x2")[1])
        program = parse_program(run.device_step.lower(run.abstract, run.batch_shapes).compile().as_text())
        return sum(map(len, program.computations.values()))

    assert instructions(48) == pytest.approx(instructions(12), rel=0.1)


def test_the_report_names_everything(tmp_path):
    keys = tiny_keys(tmp_path)
    keys["model"] |= {"vocab_size": 400}
    run = shape_run(resolve_config(keys, "the test"), jax.devices())
    lines = report(run, CHIP, COST)
    assert lines["peak memory"] == "0.00 GiB of 1.00 GiB"
    assert lines["collectives"].splitlines()[1].strip() == "10 x all-gather of 4.00kB among 4, 30.00kB sent"


@pytest.mark.slow
def test_slices_exchange_each_chip_s_share_of_the_gradients(tmp_path):
    """Two slices of four chips: each chip sends a quarter of the gradients, in tiles, which have some padding."""
    pytest.importorskip("libtpu")
    keys = tiny_keys(tmp_path, batch_size=16)
    keys["model"] |= {"vocab_size": 512, "hidden_size": 256, "num_heads": 2}
    chip, devices = described_devices("2xv5e:2x2")
    run = shape_run(resolve_config(keys, "the test"), devices)
    assert run.mesh.shape["data"] == 8
    assert [device.slice_index for device in run.mesh.devices.flat] == [0] * 4 + [1] * 4
    cost = step_cost(run)
    share = 4 * count_parameters(run.division.shapes) / 4
    assert share <= cost.between <= 1.3 * share
    assert cost.times(chip)["slices"] == cost.between / chip.dcn_bandwidth
    assert all(one.group <= 4 for one in cost.collectives)
