"""Every shipped configuration loads, builds by shape, and is named in its own first lines."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import pytest
import yaml

from jaxformer.data.corpus import open_corpus
from jaxformer.families import build_model
from jaxformer.hub.kinds import abstract_params
from jaxformer.training.config import dump_config
from jaxformer.training.optimizer import build_optimizer, build_schedule
from jaxformer.training.sources import load_config

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))

# What the config.json of a model on the Hub says.
ON_THE_HUB = {
    "sentence-transformers/all-MiniLM-L6-v2": {
        "model_type": "bert",
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 384,
        "initializer_range": 0.02,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 6,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": 30522,
    }
}


def load(path, folder):
    """The configuration; a run that it starts from is there as far as its sizes go."""
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    pretrained, key = (keys.get("model") or {}).get("pretrained"), "model.pretrained"
    if pretrained is None:
        pretrained, key = (keys.get("task") or {}).get("teacher"), "task.teacher"
    if pretrained is None:
        return load_config(path)
    if pretrained in ON_THE_HUB:
        (folder / "config.json").write_text(json.dumps(ON_THE_HUB[pretrained]), encoding="utf-8")
        return load_config(path, [f"model.pretrained={folder}"])
    earlier = next(config for config in CONFIGS if config.stem == Path(pretrained).name)
    run = folder / earlier.stem
    (run / "checkpoints").mkdir(parents=True)
    # It may have started from a run itself.
    (run / "config.yaml").write_text(dump_config(load(earlier, folder)), encoding="utf-8")
    (run / "tokenizer_config.json").touch()
    return load_config(path, [f"{key}={run}"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loads_and_builds_by_shape(path, tmp_path):
    config = load(path, tmp_path)
    model = config.model.model_copy(update={"vocab_size": config.model.vocab_size or config.tokenizer.vocab_size})
    params = nn.unbox(abstract_params(build_model(model)))
    schedule = build_schedule(config.schedule, config.optimizer.learning_rate, config.training.steps)
    # Building is the test: a key that does not fit another raises.
    jax.eval_shape(build_optimizer(config.optimizer, schedule).init, params)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_says_how_it_is_run(path):
    assert (
        f"--config configs/{path.relative_to(FOLDER).as_posix()}"
        in path.read_text(encoding="utf-8").split("\nmodel:")[0]
    )


def test_gpt_nano_takes_another_text_by_one_override(tmp_path):
    """What the README shows."""
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8")
    nano = CONFIGS[[path.stem for path in CONFIGS].index("gpt_nano")]
    corpus = open_corpus(load_config(nano, [f"data.path={tmp_path}", "data.validation_fraction=0"]).data)
    assert [document.text for document in corpus.documents("train")] == ["some text"]
    assert "standard library" in open_corpus(load_config(nano).data).name
