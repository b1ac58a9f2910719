"""Whole runs in this process; what needs a process of its own to kill is in test_cli.py."""

import json
import math
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer.schema import UserError
from jaxformer.training.loop import train
from jaxformer.training.run import prepare
from jaxformer.training.sources import load_config
from tests.training.helpers import make_run, quiet, run_training, tiny_keys


def records(keys, split=None):
    lines = Path(keys["output_dir"], "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if split in (None, record["split"])]


def losses(keys, split="train"):
    return [(record["step"], record["loss"]) for record in records(keys, split)]


def test_a_run_learns_writes_its_records_and_its_folder(tmp_path):
    keys = tiny_keys(tmp_path, steps=60, eval_every=20, log_every=7)
    keys["sample"] = {"prompt": "the", "max_new_tokens": 8}
    result = run_training(keys)
    assert [r["step"] for r in records(keys, "train")] == [1, 7, 14, 21, 28, 35, 42, 49, 56, 60]
    evals = records(keys, "eval")
    assert [r["step"] for r in evals] == [20, 40, 60]
    assert evals[0]["loss"] > evals[-1]["loss"] == result.loss
    assert evals[-1]["loss"] < math.log(257) - 1.5, "far below a uniform guess over bytes"
    assert result.sample.startswith("the")
    for name in ("config.yaml", "tokenizer.json", "data.json", "checkpoints/60"):
        assert (result.folder / name).exists(), name
    first, second = records(keys, "train")[:2]
    assert {"loss", "learning_rate", "gradient_norm", "trained_tokens"} <= first.keys()
    assert {"tokens_per_second", "model_flops_per_second", "data_wait"} <= second.keys()
    assert load_config(result.folder / "config.yaml").model.vocab_size == 257


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Twelve steps in one go: keys, result, final state's leaves."""
    keys = tiny_keys(tmp_path_factory.mktemp("whole"), steps=12, eval_every=4, save_every=4, ema_decay=0.9)
    result = run_training(keys)
    return keys, result, final_state(keys)


def final_state(keys):
    from jaxformer.training.checkpoint import Checkpoints

    run = make_run(keys)
    checkpoints = Checkpoints(run.folder / "checkpoints")
    _, state = checkpoints.restore(run.abstract)
    checkpoints.close()
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.default_cases("2")
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, uninterrupted, monkeypatch, threads):
    whole_keys, whole, whole_state = uninterrupted
    keys = tiny_keys(tmp_path, steps=12, eval_every=4, save_every=4, ema_decay=0.9)
    keys["data"]["num_threads"] = threads
    crash_at(monkeypatch, 7)
    with pytest.raises(RuntimeError, match="crash"):
        run_training(keys)
    assert records(keys)[-1]["step"] == 7, "records beyond the checkpoint were written"
    monkeypatch.undo()
    display = quiet()
    result = run_training(keys, display)
    assert "resuming at step 4 of 12" in display.console.file.getvalue()
    assert result.loss == whole.loss
    assert losses(keys) == losses(whole_keys)
    assert losses(keys, "eval") == losses(whole_keys, "eval")
    for a, b in zip(final_state(keys), whole_state, strict=True):
        np.testing.assert_array_equal(a, b)


def crash_at(monkeypatch, step):
    from jaxformer.training import loop

    due = loop.Trainer.due

    def crashing(self, every):
        if self.step == step:
            raise RuntimeError("crash")
        return due(self, every)

    monkeypatch.setattr(loop.Trainer, "due", crashing)


def test_running_a_finished_run_again_trains_nothing(uninterrupted):
    keys, whole, _ = uninterrupted
    before = records(keys)
    assert run_training(keys).loss == whole.loss
    assert records(keys) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"hidden_size": 32}}, "model.hidden_size 16 -> 32"),
        ({"seed": 5}, "seed 0 -> 5"),
        ({"tokenizer": {"type": "character"}}, "tokenizer.type 'byte' -> 'character'"),
        ({"data": {"layout": "stream"}}, "data.layout 'packed' -> 'stream'"),
        ({"optimizer": {"type": "sgd"}}, "optimizer.type 'adamw' -> 'sgd'"),
    ],
)
def test_going_on_with_other_settings_lists_the_changed_keys(uninterrupted, change, message):
    keys = {**uninterrupted[0]}
    for section, values in change.items():
        keys[section] = {**keys[section], **values} if isinstance(values, dict) else values
    with pytest.raises(UserError, match="holds a run with other settings") as error:
        run_training(keys)
    assert message in str(error.value)


def test_going_on_with_another_text_is_refused(tmp_path):
    keys = tiny_keys(tmp_path, steps=2)
    run_training(keys)
    with Path(keys["data"]["path"]).open("a", encoding="utf-8") as file:
        file.write('{"text": "one more line"}\n')
    with pytest.raises(UserError, match=r"data \(its content\)"):
        run_training({**keys, "training": {**keys["training"], "steps": 4}})


def test_more_steps_and_another_learning_rate_go_on(tmp_path):
    keys = tiny_keys(tmp_path, steps=2)
    run_training(keys)
    longer = {**keys, "training": {**keys["training"], "steps": 4}, "optimizer": {"learning_rate": 1e-3}}
    assert run_training(longer).step == 4


@pytest.mark.slow
def test_a_run_goes_on_with_other_axes(tmp_path):
    """Saved split over eight devices by parameter, restored split by head: the same losses as without either."""
    keys = tiny_keys(tmp_path, steps=8, eval_every=4, save_every=4, ema_decay=0.9)
    keys["model"]["vocab_size"] = 264  # 257 bytes and end of text do not divide
    run_training({**keys, "parallel": {"fsdp": 8}, "training": {**keys["training"], "steps": 4}})
    run_training({**keys, "parallel": {"tensor": 2}, "training": {**keys["training"], "steps": 8}})
    one_way = tiny_keys(tmp_path, steps=8, eval_every=4, save_every=4, ema_decay=0.9)
    one_way["output_dir"] = str(tmp_path / "other")
    one_way["model"]["vocab_size"] = 264
    run_training({**one_way, "training": {**one_way["training"], "steps": 4}})
    run_training(one_way)
    np.testing.assert_allclose([loss for _, loss in losses(keys)], [loss for _, loss in losses(one_way)], rtol=1e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.default_cases("15")
def test_a_signal_saves_and_stops(tmp_path, number):
    keys = tiny_keys(tmp_path, steps=100_000, log_every=50)

    def ask_once_it_runs():
        path = tmp_path / "run" / "metrics.jsonl"
        while not (path.exists() and len(path.read_text().splitlines()) > 2):
            time.sleep(0.01)
        signal.raise_signal(number)

    asker = threading.Thread(target=ask_once_it_runs)
    asker.start()
    result = run_training(keys)
    asker.join()
    assert result.stopped_by == number.name
    assert (tmp_path / "run" / "checkpoints" / str(result.step)).is_dir()
    assert result.sample is None


def test_evaluation_weights_every_token_of_the_whole_set_alike(tmp_path):
    """One row a batch and all rows in one (partial) batch give the same mean."""
    results = []
    for size in (8, 64):
        keys = tiny_keys(tmp_path, steps=1, eval_batch_size=size)
        keys["output_dir"] = str(tmp_path / f"run{size}")
        run_training(keys)
        results.append(records(keys, "eval")[0])
    assert results[0]["tokens"] == results[1]["tokens"]
    np.testing.assert_allclose(results[0]["loss"], results[1]["loss"], rtol=1e-6)
    run = make_run(keys)
    transitions = run.splits.validation.num_tokens - run.splits.validation.num_documents
    assert results[0]["tokens"] == transitions


def test_updates_that_are_not_finite_stop_the_run_and_the_step_is_named(tmp_path):
    keys = tiny_keys(tmp_path, steps=50, max_nonfinite=3)
    keys["optimizer"] = {"type": "sgd", "learning_rate": 1e38, "clip_norm": None}
    with pytest.raises(UserError, match=r"inf or nan in each of 3 steps from step \d+ on"):
        run_training(keys)


def test_early_stopping_and_its_memory(tmp_path):
    keys = tiny_keys(tmp_path, steps=50, eval_every=1, early_stopping=2)
    keys["optimizer"] = {"type": "sgd", "learning_rate": 1e-12}
    keys["schedule"] = {"type": "constant"}
    keys["model"]["dropout"] = 0.0
    result = run_training(keys)
    assert result.step < 50
    assert (result.folder / "checkpoints" / str(result.step)).is_dir()
    assert run_training(keys).step == result.step, "it stays stopped"


def test_no_validation_set_is_fine(tmp_path):
    keys = tiny_keys(tmp_path, steps=2)
    keys["data"]["validation_fraction"] = 0.0
    assert run_training(keys).loss is None


def test_stream_layout_trains(tmp_path):
    keys = tiny_keys(tmp_path, steps=3)
    keys["data"]["layout"] = "stream"
    assert math.isfinite(run_training(keys).loss)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    from jaxformer.training.run_folder import open_folder

    run = make_run(tiny_keys(tmp_path))
    with open_folder(run), pytest.raises(UserError, match="in use by another process"):
        train(run, quiet())


def test_batch_not_divisible_by_devices(tmp_path):
    with pytest.raises(UserError, match=r"training.batch_size is 12, expected a multiple of 8"):
        make_run(tiny_keys(tmp_path, batch_size=12))


def test_vocabulary_smaller_than_the_tokenizers(tmp_path):
    keys = tiny_keys(tmp_path)
    keys["model"]["vocab_size"] = 100
    with pytest.raises(UserError, match=r"model.vocab_size is 100, expected at least the tokenizer's 257"):
        make_run(keys)


def test_corpus_shorter_than_one_row(tmp_path):
    keys = tiny_keys(tmp_path)
    keys["model"]["max_length"] = 16_000
    with pytest.raises(UserError, match="expected at least one row of 16001"):
        make_run(keys)


def test_output_folder_that_is_a_file(tmp_path):
    keys = tiny_keys(tmp_path)
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"output_dir .*run cannot be written: .*; choose another"):
        run_training(keys)


def test_the_display_on_a_terminal_shows_a_bar(tmp_path):
    import io

    from rich.console import Console

    from jaxformer.training.console import Display

    screen = io.StringIO()
    display = Display(Console(file=screen, force_terminal=True, width=160))
    run_training(tiny_keys(tmp_path, steps=4), display)
    assert "training" in screen.getvalue()
    assert "4/4" in screen.getvalue()
    assert "tokens/s" in screen.getvalue()


def test_prepare_reuses_the_cache(tmp_path):
    keys = tiny_keys(tmp_path)
    first = make_run(keys)
    again = prepare(first.config, quiet())
    assert first.splits.train.path == again.splits.train.path


def test_a_trained_tokenizer_is_kept_for_the_next_run(tmp_path, monkeypatch):
    keys = {**tiny_keys(tmp_path), "tokenizer": {"type": "bpe", "vocab_size": 270}}
    first = make_run(keys)
    monkeypatch.setattr("jaxformer.training.run_tokenizer.train_tokenizer", lambda *_: pytest.fail("trained again"))
    again = make_run({**keys, "output_dir": str(tmp_path / "other")})
    assert again.facts == first.facts
    monkeypatch.undo()
    assert (
        make_run({**keys, "tokenizer": {"type": "bpe", "vocab_size": 265}}).facts["tokenizer"]
        != first.facts["tokenizer"]
    )


def warnings_of(keys):
    display = quiet()
    run_training(keys, display)
    lines = display.console.file.getvalue().splitlines()
    return lines, [line.removeprefix("warning: ") for line in lines if line.startswith("warning:")]


def saved_config(keys):
    return load_config(Path(keys["output_dir"], "config.yaml"))


@pytest.mark.slow
def test_changed_keys_of_a_finished_run_have_no_effect_and_it_says_so(tmp_path):
    keys = tiny_keys(tmp_path, steps=4)
    run_training(keys)
    before = final_state(keys)
    changed = {**keys, "optimizer": {"learning_rate": 0.5}, "schedule": {"type": "constant"}}
    changed["training"] = {**keys["training"], "steps": 2, "accumulate": 1, "eval_batch_size": 16}
    lines, warnings = warnings_of(changed)
    assert "nothing is left to train at step 4 of 2" in lines
    assert not [line for line in lines if "resuming" in line]
    (warning,) = warnings
    assert warning.startswith("no effect on a run that is finished: optimizer.learning_rate 0.01 -> 0.5, schedule.")
    assert "schedule.type 'cosine' -> 'constant'" in warning and "training.steps 4 -> 2" in warning
    assert "eval_batch_size" not in warning, "it is evaluated with it"
    assert warning.endswith("raise training.steps to go on, or choose another output_dir to train with it")
    kept = saved_config(keys)
    assert (kept.optimizer.learning_rate, kept.schedule.type, kept.training.steps) == (0.01, "cosine", 4)
    assert kept.training.eval_batch_size == 16
    assert all(map(np.array_equal, final_state(keys), before))
    assert warnings_of(keys)[1] == [], "the keys that it was trained with"


def test_changed_keys_of_a_run_that_goes_on_take_effect(tmp_path):
    keys = tiny_keys(tmp_path, steps=4)
    run_training(keys)
    changed = {**keys, "optimizer": {"learning_rate": 0.5}, "schedule": {"type": "constant", "warmup_steps": 0}}
    changed["training"] = {**keys["training"], "steps": 6}
    lines, warnings = warnings_of(changed)
    assert "resuming at step 4 of 6" in lines and warnings == []
    assert [record["learning_rate"] for record in records(keys, "train")][-2:] == [0.5, 0.5]
    assert saved_config(keys).optimizer.learning_rate == 0.5


@pytest.mark.slow
def test_a_run_that_stopped_early_is_finished_until_it_may_be_more_patient(tmp_path):
    # At this rate no evaluation after the first is better.
    keys = tiny_keys(tmp_path, steps=40, eval_every=1, early_stopping=2)
    keys["optimizer"], keys["schedule"] = {"learning_rate": 100.0, "clip_norm": None}, {"type": "constant"}
    step = run_training(keys).step
    assert step < 40
    lines, warnings = warnings_of({**keys, "optimizer": {"learning_rate": 1e-3, "clip_norm": None}})
    assert f"nothing is left to train at step {step} of 40" in lines
    assert warnings == [
        "no effect on a run that is finished: optimizer.learning_rate 100.0 -> 0.001; raise training.early_stopping "
        "to go on, or choose another output_dir to train with it"
    ]
    patient = {**keys, "training": {**keys["training"], "steps": step + 1, "early_stopping": 30}}
    lines, warnings = warnings_of(patient)
    assert f"resuming at step {step} of {step + 1}" in lines and warnings == []


@pytest.mark.slow
def test_another_pretrained_model_has_no_effect_on_a_run_that_has_begun(tmp_path):
    keys = {**tiny_keys(tmp_path, steps=2), "schedule": {"type": "constant"}}
    for name in ("a", "b"):
        run_training({**keys, "output_dir": str(tmp_path / name)})
    begun = {**keys, "model": {"pretrained": str(tmp_path / "a")}}
    run_training(begun)
    other = {**begun, "model": {"pretrained": str(tmp_path / "b")}, "training": {**keys["training"], "steps": 3}}
    lines, warnings = warnings_of(other)
    assert "resuming at step 2 of 3" in lines
    assert warnings == [
        f"no effect on a run that has begun: model.pretrained '{tmp_path / 'a'}' -> '{tmp_path / 'b'}'; choose another "
        "output_dir to train with it"
    ]
    assert saved_config(keys).model.pretrained == str(tmp_path / "a")


@pytest.mark.slow
def test_the_padding_token_may_change_only_where_no_step_reads_it(tmp_path):
    keys = tiny_keys(tmp_path, steps=2)
    run_training(keys)
    keys["model"] |= {"pad_token_id": 7}
    run_training(keys)
    assert saved_config(keys).model.pad_token_id == 7

    roberta = {**keys, "output_dir": str(tmp_path / "roberta"), "task": {"type": "masked_lm"}}
    roberta["model"] = {**keys["model"], "type": "roberta", "pad_token_id": 1}
    run_training(roberta)
    assert saved_config(roberta).model.position_offset == "after_pad"
    roberta["model"]["pad_token_id"] = 5
    with pytest.raises(UserError, match=r"holds a run with other settings: model.pad_token_id 1 -> 5; undo the change"):
        run_training(roberta)

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "a" * n, "label": n % 2}) + "\n" for n in range(1, 40)))
    classifier = {**keys, "output_dir": str(tmp_path / "classes"), "task": {"type": "sequence_classification"}}
    classifier["data"] = {**keys["data"], "path": str(path)}
    run_training(classifier)
    classifier["model"] = {**keys["model"], "pad_token_id": 97}
    with pytest.raises(UserError, match=r"holds a run with other settings: model.pad_token_id 7 -> 97; undo"):
        run_training(classifier)


@pytest.mark.slow
def test_the_sample_is_drawn_on_the_devices_of_the_run(tmp_path, monkeypatch):
    """Outside of ``on_mesh`` a model is compiled as on one device, and its attention kernel is not split."""
    from jaxformer.models.partition import one_device
    from jaxformer.training import loop

    seen = []
    search = loop.search
    monkeypatch.setattr(loop, "search", lambda *args, **kwargs: seen.append(one_device()) or search(*args, **kwargs))
    keys = {**tiny_keys(tmp_path, steps=1), "sample": {"prompt": "the", "max_new_tokens": 8, "temperature": 0.0}}
    whole = run_training(keys).sample
    assert seen == [False]
    keys = {**keys, "output_dir": str(tmp_path / "split"), "parallel": {"fsdp": 2, "tensor": 2}}
    keys["model"]["vocab_size"] = 258
    assert run_training(keys).sample is not None and whole is not None
