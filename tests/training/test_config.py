import re

import pytest

from jaxformer.schema import UserError
from jaxformer.training.config import dump_config
from jaxformer.training.sources import load_config, resolve_config


def error_of(text: str, tmp_path, *overrides: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(str(path), "c.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {hiden_size: 8}", "c.yaml: unknown key model.hiden_size; did you mean model.hidden_size?"),
        ("traning: {steps: 8}", "c.yaml: unknown key traning; did you mean training?"),
        ("model: {batch_size: 8}", "c.yaml: unknown key model.batch_size; did you mean training.batch_size?"),
        ("training: {steps: many}", "c.yaml: training.steps is 'many', expected a valid integer"),
        ("training: {steps: 0}", "c.yaml: training.steps is 0, expected greater than or equal to 1"),
        ("training: 3", "c.yaml: training is 3, expected a valid dictionary or instance of TrainingConfig"),
        ("model: {type: gtp2}", "c.yaml: model.type is 'gtp2', expected one of gpt2, gpt1, gpt_neo, "),
        ("task: {type: masked}", "c.yaml: task.type is 'masked', expected one of causal_lm, prefix_lm, masked_lm, "),
        ("task: {type: causal_lm, rate: 0.1}", "c.yaml: unknown key task.rate for this task.type; masked_lm, "),
        (
            "task: {type: masked_lm}",
            "c.yaml: task.type masked_lm does not go with model.type gpt2 (decoder), expected encoder: set model.type "
            "to one of bert, distilbert, roberta, xlm_roberta, roberta_prelayernorm, electra, albert, big_bird, "
            "deberta_v3, mpnet, roformer, modernbert, embedding_gemma, or task.type to one of causal_lm, ",
        ),
        (
            "{model: {type: bert}, task: {type: seq2seq}}",
            "c.yaml: task.type seq2seq does not go with model.type bert (encoder), expected encoder-decoder: set ",
        ),
        (
            "model: {hidden_size: 10, num_heads: 3}",
            "c.yaml: model: hidden_size is 10 and num_heads 3, expected a multiple: "
            "set hidden_size to 9, or give head_size",
        ),
        (
            "training: {batch_size: 6, accumulate: 4}",
            "c.yaml: training.batch_size is 6 and training.accumulate 4, expected a multiple",
        ),
        (
            "training: {sequence_length: 2000}",
            "c.yaml: training.sequence_length is 2000, expected at most model.max_length 1024",
        ),
        ("optimizer: {type: adam}", "c.yaml: optimizer.type is 'adam', expected 'adamw', "),
        ("schedule: {type: inverse_sqrt}", "c.yaml: schedule: schedule.warmup_steps is 0, expected 1 or more"),
        ("- a\n- b", "config file c.yaml holds a list, expected keys and values"),
        ("a: [1", "config file c.yaml line 1 is not valid YAML"),
    ],
)
def test_errors_name_file_key_got_and_expected(text, message, tmp_path):
    assert error_of(text, tmp_path).startswith(message)


@pytest.mark.parametrize(
    ("task", "length"),
    [
        ({"type": "seq2seq"}, 128),
        ({"type": "span_corruption", "target_length": 65}, 65),
        ({"type": "instruction", "target_length": 65}, 65),
        ({"type": "dpo", "target_length": 65}, 65),
        ({"type": "grpo", "reward": "a", "max_new_tokens": 65, "group_size": 8}, 65),
        ({"type": "distillation", "teacher": "a", "of": {"type": "seq2seq"}}, 128),
    ],
)
def test_targets_longer_than_the_model_reads_are_refused(task, length):
    config = resolve_config({"model": {"type": "t5", "max_length": 64}, "task": task}, "test")
    expected = f"a target of the task may have {length} tokens, expected at most model.max_length 64; set target_length"
    with pytest.raises(UserError, match=re.escape(expected)):
        config.check_targets()


def test_errors_of_overrides_name_the_command_line(tmp_path):
    assert error_of("", tmp_path, "training.stps=3").startswith(
        "the command line: unknown key training.stps; did you mean training.steps?"
    )
    assert "expected key.path=value" in error_of("", tmp_path, "training.steps")
    assert "seed is a value" in error_of("seed: 1", tmp_path, "seed.x=3")


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "gpt_nano.yaml").write_text("")
    with pytest.raises(UserError, match=r"gpt_nno\.yaml does not exist; did you mean .*gpt_nano\.yaml\?"):
        load_config(tmp_path / "gpt_nno.yaml")


def test_override_beats_file_and_file_beats_family(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {type: llama, num_layers: 3, hidden_size: 64}\ntraining: {steps: 5}")
    config = load_config(path, ["training.steps=10", "model.norm_epsilon=1e-3", "optimizer.clip_norm=null"])
    assert config.training.steps == 10
    assert config.model.num_layers == 3
    assert config.model.norm == "rms_norm", "the family's default"
    assert config.model.norm_epsilon == 1e-3, "YAML 1.1 reads 1e-3 as text; the type mends it"
    assert config.optimizer.clip_norm is None
    assert config.output_dir == "runs/c"


def test_swapping_the_family_is_one_override(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {type: gpt2, hidden_size: 64, num_heads: 4}")
    gpt2, llama = load_config(path), load_config(path, ["model.type=llama"])
    assert (gpt2.model.positions, llama.model.positions) == ("learned", "rotary")
    assert gpt2.model.hidden_size == llama.model.hidden_size == 64
    assert (llama.model.kv_heads, llama.model.head_width) == (4, 16), "not those of the family's full width"
    assert (gpt2.model.inner_size, llama.model.inner_size) == (256, 192)
    assert load_config(None, ["model.type=llama"]).model.intermediate_size == 8192


def test_printed_config_reads_back_the_same(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: {type: llama, rope_scaling: {type: llama3, factor: 8}}\ndata: {path: 'a b'}\nseed: 3\noutput_dir: o"
    )
    config = load_config(path)
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_config_cannot_be_changed_and_hashes():
    config = resolve_config({}, "test")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3
    assert hash(config.model) == hash(resolve_config({}, "test").model)
