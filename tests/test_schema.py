"""Paths: what is not on this machine is refused everywhere in one line, and nothing is made."""

from pathlib import Path

import pytest

from jaxformer.cli import run
from jaxformer.data.config import DataConfig
from jaxformer.hub.repository import Repository
from jaxformer.lora.peft import read_config
from jaxformer.pipelines import pipeline
from jaxformer.schema import UserError, local_path
from jaxformer.tokenizers import TokenizerConfig, load_tokenizer, save_tokenizer, train_tokenizer
from jaxformer.training.export import export, export_adapter, load_run
from jaxformer.training.run import prepare
from jaxformer.training.sources import resolve_config
from tests.training.helpers import quiet, tiny_keys

KEYS = {
    "output_dir": {},
    "data.path": {},
    "data.validation_path": {},
    "data.cache_dir": {},
    "model.pretrained": {},
    "tokenizer.path": {"tokenizer": {"type": "file"}},
    "training.compilation_cache": {},
    "task.teacher": {"task": {"type": "distillation"}, "tokenizer": {"type": "byte"}},
    "task.reward": {"task": {"type": "grpo"}},
}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Whatever is made by mistake is made here."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "address", ["gs://bucket/x", "s3://bucket/x", "hdfs://name/x", "abfss://x@y/z", "hf://datasets/x"]
)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_an_address_is_refused_by_its_name(tmp_path, key, address):
    keys = {**tiny_keys(tmp_path), **KEYS[key]}
    section, _, name = key.rpartition(".")
    inner = keys
    if section:
        inner = keys[section] = dict(keys.get(section, {}))
    inner[name] = address
    with pytest.raises(
        UserError, match=rf"{address} is on {address.split(':')[0]}://, which is not supported"
    ) as error:
        prepare(resolve_config(keys, "tiny.yaml", {key}), quiet())
    said = str(error.value)
    assert said.startswith("the command line: ") and "\n" not in said and "more)" not in said


def test_a_list_of_paths_is_looked_through(tmp_path):
    keys = tiny_keys(tmp_path)
    keys["data"]["path"] = [keys["data"]["path"], "s3://bucket/x.jsonl"]
    with pytest.raises(UserError, match=r"^tiny.yaml: data.path: s3://bucket/x.jsonl is on s3://"):
        resolve_config(keys, "tiny.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        "train --config gs://b/x",
        "train --config {config} output_dir=gs://b/x",
        "data --config {config} data.path=gs://b/x",
        "predict --model {model} --file {file} --out gs://b/x",
        "predict --model {model} --file gs://b/x --out {model}/out.jsonl",
        "predict --model gs://b/x --file {file} --out {model}/out.jsonl",
        "generate --model gs://b/x --prompt a",
        "generate --model {model} --file gs://b/x",
        "best-of-n --model {model} --reward {model} --file {file} --out gs://b/x",
        "best-of-n --model {model} --reward gs://b/x --file {file} --out {model}/out.jsonl",
        "export gs://b/x {model}/out",
        "export {model} gs://b/x",
    ],
)
def test_an_option_that_is_an_address_is_refused(tmp_path, capsys, arguments):
    config, file, model = tmp_path / "tiny.yaml", tmp_path / "in.txt", tmp_path / "model"
    config.write_text("tokenizer: {type: byte}\n")
    file.write_text("a\n")
    model.mkdir()
    name, *given = arguments.format(config=config, file=file, model=model).split()
    assert run(name, given, "jaxformer") == 2
    said = capsys.readouterr().err
    assert "gs://b/x is on gs://, which is not supported" in " ".join(said.split())


@pytest.mark.parametrize("kind", [str, Path])  # ``pathlib`` makes one slash of two
@pytest.mark.parametrize(
    "function",
    [
        lambda place: save_tokenizer(train_tokenizer(TokenizerConfig(type="byte"), ("a",)), place),
        load_tokenizer,
        load_run,
        read_config,
        lambda place: export("no/such/run", place),
        lambda place: export_adapter("no/such/run", place),
        lambda place: Repository(str(place)).find("config.json"),
        lambda place: Repository("owner/name", cache_dir=place).find("config.json"),
        lambda place: pipeline("text-generation", place),
    ],
)
def test_functions_that_read_or_write_a_folder_refuse_an_address(function, kind):
    with pytest.raises(UserError, match=r"gs:/.* is on gs://, which is not supported"):
        function(kind("gs://b/x"))


def test_the_environment_may_not_name_an_address_either(monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", "gs://b/cache")
    with pytest.raises(UserError, match="gs://b/cache is on gs://"):
        _ = DataConfig().cache_folder


def test_paths_of_this_machine_are_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/runs/x") == tmp_path / "runs/x"
    for place in ("runs/a:b", "C:/runs", "wikitext:wikitext-2-raw-v1", "rewards.py:score", "owner/name", "a//b"):
        assert local_path(place) == Path(place)
