"""Downloads and uploads through the real client of the Hub, against a stand-in of the Hub on this machine."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from huggingface_hub import constants, snapshot_download

from jaxformer.hub import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    push_to_hub,
    save_pretrained,
)
from jaxformer.hub.kinds import build
from jaxformer.hub.pretrained import describe
from jaxformer.hub.repository import Repository
from jaxformer.schema import UserError
from tests.hub.stand_in import StandIn

# The client's own, of the library below it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME, OTHERS = "me/my-model", "someone/a-model"
CONFIG = {
    "model_type": "bert",
    "vocab_size": 29,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.5,
}
OPEN = AutoModelForSequenceClassification.from_pretrained


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, which the client takes for the Hub, with nothing in the cache and nobody logged in."""
    with StandIn() as server:
        use(server, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # Its protocol needs a server of its own; without it large files go by that of git.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between attempts
        yield server


def use(server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)


@pytest.fixture(scope="module")
def trained():
    """A tiny BERT classifier with three named classes."""
    model = build(describe(CONFIG).config, "sequence_classification", num_labels=3, labels=("no", "maybe", "yes"))
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """What ``save_pretrained`` writes of it, by name."""
    folder = save_pretrained(tmp_path_factory.mktemp("saved") / "model", *trained)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_equal(params, expected):
    flat, expected = (flatten_dict(dict(nn.unbox(tree)), sep="/") for tree in (params, expected))
    assert flat.keys() == expected.keys()
    for path, value in flat.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def changed(params):
    """Other parameters of the same shapes."""
    return jax.tree.map(lambda value: value + 1, params)


def refused(match, call, *args, **options):
    """The one line with which a call is refused."""
    with pytest.raises(UserError, match=match) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pushed_and_opened_again_it_is_the_same_model(hub, trained):
    model, params = trained
    address = push_to_hub(NAME, model, params, token="hf_me", metrics={"accuracy": 0.5}, message="First")
    assert address == f"{hub.url}/{NAME}/commit/{hub.repos[NAME].branches['main']}"
    again, read = OPEN(NAME)
    assert_equal(read, params)
    assert again == model.clone(config=again.config)
    batch = {"input_ids": jnp.asarray([[3, 5, 7, 0], [1, 2, 4, 6]]), "attention_mask": jnp.asarray([[1, 1, 1, 0]] * 2)}
    got, expected = (m.apply({"params": p}, **batch).logits for m, p in ((again, read), (model, params)))
    np.testing.assert_array_equal(got, expected)
    card = hub.repos[NAME].files()["README.md"].decode()
    assert f'from_pretrained("{NAME}")' in card
    assert "| accuracy | 0.5 |" in card


def test_a_name_alone_is_one_of_the_token_s_owner(hub, trained):
    push_to_hub("my-model", *trained, token="hf_me", private=True)
    assert hub.repos[NAME].private
    assert f'from_pretrained("{NAME}")' in hub.repos[NAME].files()["README.md"].decode()


def test_the_tokenizer_goes_with_it_and_opens_offline(hub, trained, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, tokenizer_class="BertTokenizer")
    push_to_hub(NAME, *trained, tokenizer, token="hf_me")
    assert AutoTokenizer.from_pretrained(NAME)("the cat")["input_ids"] == [2, 5, 6, 3]
    hub.forget()
    again = AutoTokenizer.from_pretrained(NAME, local_files_only=True)
    assert again("the cat")["input_ids"] == [2, 5, 6, 3]
    assert hub.requests == []


def test_opened_a_second_time_nothing_is_downloaded(hub, files):
    hub.add(OTHERS, files)
    OPEN(OTHERS)
    assert hub.asked("GET") == ["config.json", "large"]
    hub.forget()
    OPEN(OTHERS)
    assert hub.asked("GET") == []
    # One question: is the branch where it was?
    assert hub.asked("HEAD") == ["config.json"]


def test_revisions(hub, trained):
    model, params = trained
    push_to_hub(NAME, model, params, token="hf_me")
    first = hub.repos[NAME].branches["main"]
    push_to_hub(NAME, model, changed(params), token="hf_me", revision="try/it")
    for revision, expected in ((None, params), ("main", params), (first, params), ("try/it", changed(params))):
        assert_equal(OPEN(NAME, revision=revision).params, expected)
    push_to_hub(NAME, model, changed(params), token="hf_me")
    assert_equal(OPEN(NAME).params, changed(params))
    assert_equal(OPEN(NAME, revision=first).params, params)


def test_a_branch_that_moves_while_it_is_read_does_not_mix_two_models(hub, trained, files):
    hub.add(OTHERS, files)
    repository = Repository(OTHERS)
    repository.get("config.json")
    hub.repos[OTHERS].commit({"config.json": b"{}"})
    assert repository.get("model.safetensors").read_bytes() == files["model.safetensors"]


def test_in_shards(hub, trained):
    model, params = trained
    push_to_hub(NAME, model, params, token="hf_me", shard_bytes=2_000)
    stored = hub.repos[NAME].files()
    assert "model.safetensors" not in stored
    assert sum(name.endswith(".safetensors") for name in stored) >= 3
    assert_equal(OPEN(NAME).params, params)


@pytest.mark.parametrize("sizes", [(2_000, 10**9), (10**9, 2_000), (2_000, 1_000)])
def test_weights_of_the_model_before_are_not_left_beside_the_new(hub, trained, sizes):
    model, params = trained
    push_to_hub(NAME, model, params, token="hf_me", shard_bytes=sizes[0])
    hub.repos[NAME].commit({**hub.repos[NAME].files(), "pytorch_model.bin": b"old", "notes.txt": b"mine"})
    push_to_hub(NAME, model, changed(params), token="hf_me", shard_bytes=sizes[1])
    assert_equal(OPEN(NAME).params, changed(params))
    stored = hub.repos[NAME].files()
    assert "pytorch_model.bin" not in stored
    assert stored["notes.txt"] == b"mine"
    assert ("model.safetensors" in stored) != ("model.safetensors.index.json" in stored)


def test_all_files_come_in_one_commit(hub, trained):
    push_to_hub(NAME, *trained, token="hf_me", shard_bytes=2_000)
    assert len(hub.repos[NAME].commits) == 2  # that of the empty repository, and this


def test_private(hub, trained, monkeypatch):
    push_to_hub(NAME, *trained, token="hf_me", private=True)
    refused("a repository on the Hub that this token can see; .* set HF_TOKEN", OPEN, NAME)
    refused("a repository on the Hub that this token can see", OPEN, NAME, token="hf_other")
    refused("refuses the token given .* expected a valid one", OPEN, NAME, token="hf_wrong")
    refused(r"Token is required", OPEN, NAME, token=True)
    assert_equal(OPEN(NAME, token="hf_me").params, trained[1])
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    assert_equal(OPEN(NAME).params, trained[1])


def test_gated(hub, files):
    hub.add(OTHERS, files, gated=True)
    for token in (None, "hf_me"):
        refused("gated, expected a token with access; accept its terms", OPEN, OTHERS, token=token)
    hub.granted.add("me")
    OPEN(OTHERS, token="hf_me")


def test_what_is_not_there(hub, files):
    hub.add(OTHERS, files)
    hub.add("someone/no-weights", {"config.json": files["config.json"]})
    hub.add("someone/empty", {})
    hub.add("someone/half", {**files, "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}'})
    del hub.repos["someone/half"].files()["model.safetensors"]
    refused("nobody/nothing is neither a folder nor a repository on the Hub", OPEN, "nobody/nothing")
    refused("has no revision 'v9', expected a branch, tag or commit", OPEN, OTHERS, revision="v9")
    refused("someone/no-weights has no weights, expected model.safetensors", OPEN, "someone/no-weights")
    refused("someone/empty has no config.json", AutoConfig.from_pretrained, "someone/empty")
    refused("someone/half has no model-1.safetensors", OPEN, "someone/half")
    refused("neither a folder nor a name on the Hub", OPEN, "../nowhere/at/all")


def test_without_a_head_it_has_only_the_config_is_downloaded(hub, files):
    hub.add(OTHERS, files)
    refused("no bert model with head 'seq2seq_lm'", AutoModelForSeq2SeqLM.from_pretrained, OTHERS)
    assert hub.asked("GET") == ["config.json"]


def test_offline_with_the_model_in_the_cache(hub, trained, files, monkeypatch):
    hub.add(OTHERS, files)
    OPEN(OTHERS)
    hub.forget()
    assert_equal(OPEN(OTHERS, local_files_only=True).params, trained[1])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_equal(OPEN(OTHERS).params, trained[1])
    assert hub.requests == []


def test_offline_without_it(hub, files, monkeypatch):
    hub.add(OTHERS, files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("config.json of someone/a-model is not in the local cache, and HF_HUB_OFFLINE", OPEN, OTHERS)
    assert hub.requests == []


def test_offline_a_file_is_absent_only_if_the_hub_once_said_so(hub, files):
    hub.add(OTHERS, files)
    Repository(OTHERS).get("config.json")
    assert Repository(OTHERS).find("known.json") is None
    offline = Repository(OTHERS, local_files_only=True)
    assert offline.find("known.json") is None
    refused(
        "unknown.json of someone/a-model is not in the local cache, and HF_HUB_OFFLINE", offline.find, "unknown.json"
    )
    refused("model.safetensors of someone/a-model is not in the local cache", OPEN, OTHERS, local_files_only=True)


def test_offline_the_list_of_a_whole_download_says_what_is_absent(hub, files):
    hub.add(OTHERS, files)
    snapshot_download(OTHERS)
    offline = Repository(OTHERS, local_files_only=True)
    assert offline.find("unknown.json") is None  # before and after the commit is known
    offline.get("config.json")
    assert offline.find("unknown.json") is None
    OPEN(OTHERS, local_files_only=True)


def test_the_hub_is_down(hub, trained, files):
    hub.add(OTHERS, files)
    OPEN(OTHERS)
    hub.close()
    assert_equal(OPEN(OTHERS).params, trained[1])
    refused("config.json of someone/else is not in the local cache and the Hub cannot be reached", OPEN, "someone/else")
    refused("could not be uploaded: the Hub cannot be reached", push_to_hub, NAME, *trained, token="hf_me")


def test_the_hub_is_out_of_order(hub, trained, files):
    hub.add(OTHERS, files)
    hub.failing["."] = 500
    refused("config.json of someone/a-model could not be downloaded: .*500", OPEN, OTHERS)
    # What fails is not taken for what is not there.
    hub.failing = {"safetensors": 503}
    refused("model.safetensors of someone/a-model could not be downloaded: .*503", OPEN, OTHERS)
    hub.failing = {"/large/": 403}
    refused("model.safetensors of someone/a-model could not be downloaded: .*403 Forbidden", OPEN, OTHERS)
    hub.failing = {}
    assert_equal(OPEN(OTHERS).params, trained[1])


def test_a_download_cut_short_is_refused(hub, files):
    hub.add(OTHERS, files)
    cached = Repository(OTHERS).get("model.safetensors").resolve()
    cached.unlink()
    hub.cut.add(cached.name)
    refused("model.safetensors of someone/a-model could not be downloaded: .*should be of size", OPEN, OTHERS)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "expected a valid token with the right to write; log in with"),
        ("hf_wrong", "expected a valid token with the right to write"),
        ("hf_other", "this token has no right to write there"),
    ],
)
def test_who_may_not_write_is_told_so(hub, trained, token, message):
    hub.add(NAME, {})
    refused(f"{NAME} could not be uploaded: {message}", push_to_hub, NAME, *trained, token=token)
    assert hub.repos[NAME].files() == {}


def test_an_upload_that_fails_commits_nothing(hub, trained):
    hub.add(NAME, {})
    for path, status in {"/large/": 500, "/commit/": 502, "/preupload/": 504}.items():
        hub.failing = {path: status}
        line = refused("try again later", push_to_hub, NAME, *trained, token="hf_me")
        assert str(status) in line
        assert hub.repos[NAME].files() == {}


def test_a_name_that_cannot_be_is_refused_before_anything_is_written(hub, trained):
    for name in ("..", "a/b/c", "me/with space", ""):
        refused("is no name on the Hub, expected owner/name", push_to_hub, name, *trained, token="hf_me")
    assert hub.requests == []


@pytest.mark.slow
def test_the_environment_of_the_client_is_ours(hub, files, tmp_path):
    hub.add(NAME, files, private=True)
    code = "from jaxformer.hub import AutoConfig; print(AutoConfig.from_pretrained('me/my-model').hidden_size)"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_me"}

    def run(**more):
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, env={**environment, **more})

    assert "is not in the local cache" in run(HF_HUB_OFFLINE="1").stderr
    online = run()
    assert online.stdout == "8\n", online.stderr
    assert run(HF_HUB_OFFLINE="1").stdout == "8\n"


def test_a_model_in_a_folder_of_a_repository(hub, files, trained, tmp_path):
    """As diffusers lays out the text encoder of a model of images."""
    hub.add(OTHERS, {f"text_encoder/{name}": content for name, content in files.items()})
    for name, content in files.items():
        (tmp_path / "here" / "text_encoder").mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / "text_encoder" / name).write_bytes(content)
    refused("a-model has no config.json", OPEN, OTHERS)
    refused("a-model/vae has no config.json", OPEN, OTHERS, subfolder="vae")
    refused("subfolder is '../x', expected a folder inside of", OPEN, OTHERS, subfolder="../x")
    for place in (OTHERS, tmp_path / "here"):
        _, params = OPEN(place, subfolder="text_encoder")
        assert AutoConfig.from_pretrained(place, subfolder="text_encoder").hidden_size == 8
        assert jnp.shape(params["embeddings"]["token"]["embedding"]) == (29, 8)
