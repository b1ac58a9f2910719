"""Vectors of texts as the files of a sentence encoder say, and of whole files."""

import json
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxformer
from jaxformer.cli import run
from jaxformer.hub import save_pretrained
from jaxformer.hub.repository import Repository
from jaxformer.hub.sentence_files import SentenceFormat, read_sentence_format
from jaxformer.models.sentence_encoder import DenseLayer
from jaxformer.pipelines import open_model
from jaxformer.pipelines.embed import embed
from jaxformer.pipelines.resumable import about_path
from jaxformer.schema import UserError
from tests.pipelines import tiny
from tests.pipelines.cases import TEXTS

PROMPTS = (("query", "rain "), ("document", ""))
DENSE = (DenseLayer(6, "tanh"), DenseLayer(5, None, False))


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("states"), "states")


@pytest.fixture(scope="module")
def model(states, tmp_path_factory):
    """A sentence encoder on the same body."""
    opened = open_model(str(states), "body")
    model = SentenceFormat("first", DENSE, True).encoder(opened.model.config).clone(prompts=PROMPTS, longest=12)
    drawn = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 2), int))["params"]
    dense = {name: jax.tree.map(lambda x: 9 * x, drawn[name]) for name in ("dense_layers_0", "dense_layers_1")}
    return save_pretrained(tmp_path_factory.mktemp("model"), model, opened.params | dense, opened.tokenizer)


def test_opened_and_written_again(model, pipe, tmp_path):
    opened, params = jaxformer.AutoSentenceEncoder.from_pretrained(model)
    assert opened.prompts == PROMPTS and opened.longest == 12 and opened.dense == DENSE
    tokenizer = jaxformer.AutoTokenizer.from_pretrained(model)
    batch = tokenizer(["rain fell"], return_tensors="np")
    found = jax.jit(opened.apply)({"params": params}, **batch).embedding[0]
    np.testing.assert_allclose(found, pipe("rain fell"), atol=1e-5)
    again = save_pretrained(tmp_path, opened, params, tokenizer)
    for name in ("modules.json", "2_Dense/config.json", "2_Dense/model.safetensors", "model.safetensors"):
        assert (again / name).read_bytes() == (model / name).read_bytes()


def test_a_model_that_is_no_sentence_encoder(states):
    with pytest.raises(UserError, match=r"has no modules\.json with a pooling, expected a sentence encoder"):
        jaxformer.AutoSentenceEncoder.from_pretrained(states)


@pytest.fixture(scope="module")
def pipe(model):
    return jaxformer.pipeline("feature-extraction", model, batch_size=2, return_tensors=True)


def test_files_are_read_as_they_were_written(model):
    format, params = read_sentence_format(Repository(str(model)))
    assert format == SentenceFormat("first", DENSE, True, dict(PROMPTS), None, 12)
    assert params["dense_layers_0"]["kernel"].shape == (8, 6) and "bias" not in params["dense_layers_1"]
    modules = json.loads((model / "modules.json").read_text())
    assert [m["path"] for m in modules] == ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]


@pytest.mark.filterwarnings("ignore:.*a text of")
@pytest.mark.slow
def test_vectors_are_worked_out_from_the_states(model, pipe, states):
    _, params = read_sentence_format(Repository(str(model)))
    bare = jaxformer.pipeline("feature-extraction", states, return_tensors=True)
    for text, vector, asked in zip(TEXTS, pipe(TEXTS), pipe(TEXTS, prompt_name="query"), strict=True):
        for given, found in ((text, vector), ("rain " + text, asked)):
            first = bare(given, max_length=12)[0, 0]
            inner = np.tanh(first @ params["dense_layers_0"]["kernel"] + params["dense_layers_0"]["bias"])
            expected = inner @ params["dense_layers_1"]["kernel"]
            np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)
    similar = jaxformer.pipeline("sentence-similarity", model)
    a, b = pipe(TEXTS[:2])
    np.testing.assert_allclose(similar(TEXTS[0], TEXTS[1:2]), [a @ b], atol=1e-5)
    assert np.shape(pipe(TEXTS[0], pooling="none"))[2] == 8 and np.shape(pipe(TEXTS[0], pooling="mean")) == (8,)
    assert pipe(TEXTS[0], prompt="rain ").tolist() == pipe(TEXTS[0], prompt_name="query").tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modules.json": [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "../x"}]}, "'../x'"),
        ({"modules.json": [{"type": "a.WordWeights", "path": ""}, {"type": "Pooling", "path": "x"}]}, "WordWeights"),
        ({"modules.json": {}}, None),
        ({"modules.json": [1]}, "is damaged, expected a JSON list of modules"),
        (
            {"1_Pooling/config.json": {"pooling_mode_max_tokens": True}},
            "pools by pooling_mode_max_tokens, expected mean",
        ),
        ({"1_Pooling/config.json": {"pooling_mode": ["mean", "cls"]}}, "pools by mean and cls, expected"),
        ({"1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": False}}, "leaves prompts out"),
        (
            {"2_Dense/config.json": {"activation_function": "evil.Run"}},
            "has the activation 'evil.Run', expected one of",
        ),
        ({"config_sentence_transformers.json": {"default_prompt_name": "q"}}, "has no prompt 'q'"),
    ],
)
def test_files_that_are_not_understood(change, message, model, tmp_path):
    for path in model.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".safetensors"):
            target = tmp_path / path.relative_to(model)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    for name, value in change.items():
        (tmp_path / name).write_text(json.dumps(value))
    if message is None:
        assert read_sentence_format(Repository(str(tmp_path))) is None
        return
    with pytest.raises(UserError, match=message):
        read_sentence_format(Repository(str(tmp_path)))


def test_a_prompt_that_the_model_does_not_have(pipe):
    with pytest.raises(UserError, match=r"prompt_name is 'passage', expected one that .* has: query, document"):
        pipe("rain", prompt_name="passage")


def text_of(number):
    return " ".join(TEXTS[number % len(TEXTS)].split()[: number % 5 + 1])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text_of(n)}) + "\n" for n in range(150)))
    return path


@pytest.fixture(scope="module")
def expected(pipe):
    return np.stack(pipe([text_of(n) for n in range(150)]))


def test_a_vector_for_each_line(pipe, file, expected, tmp_path):
    out = tmp_path / "out.npy"
    assert embed(pipe, file, out).lines == 150
    found = np.load(out)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    whole = out.read_bytes()
    assert embed(pipe, file, out).earlier == 150 and out.read_bytes() == whole
    # As after being killed: half a row is left, and the head says nothing yet.
    out.write_bytes(np.lib.format.magic(1, 0) + bytes(120) + whole[128 : 128 + 70 * 20 + 7])
    assert embed(pipe, file, out).earlier == 70 and out.read_bytes() == whole
    with pytest.raises(UserError, match=r"begun with other settings: options .*expected the same to resume it"):
        embed(jaxformer.pipeline("feature-extraction", pipe.name, prompt_name="query"), file, out)


def test_parquet(pipe, file, expected, tmp_path):
    from pyarrow.parquet import read_table

    out = tmp_path / "out.parquet"
    embed(pipe, file, out)
    np.testing.assert_allclose(np.stack(read_table(out)["embedding"].to_numpy()), expected, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["in.jsonl", "out.parquet"]
    with pytest.raises(UserError, match=r"out.parquet exists; choose another --out, or remove it"):
        embed(pipe, file, out)


@pytest.mark.parametrize(
    ("line", "reason"),
    [('{"text": 3}', "expected a text"), ("", "blank"), ('{"txt": ""}', "no column 'text'"), ("[", "not JSON")],
)
def test_a_bad_line_is_named_and_what_is_before_it_kept(line, reason, pipe, file, expected, tmp_path):
    lines = file.read_text().splitlines()
    lines[100] = line
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=rf"^line 101: .*{reason}.*; every line needs a vector: fix it"):
        embed(pipe, file, tmp_path / "out.npy")
    assert len(about_path(tmp_path / "out.npy").read_text()) > 9
    assert (tmp_path / "out.npy").stat().st_size == 128 + 64 * 5 * 4  # the first window


def test_the_command(model, states, file, expected, tmp_path, capsys):
    def command(out, source=model, *more):
        return run("embed", ["--model", str(source), "--file", str(file), "--out", str(tmp_path / out), *more])

    assert command("out.npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)
    capsys.readouterr()
    assert command("out.txt") == 2
    assert (
        capsys.readouterr().err
        == f"error: --out is {tmp_path}/out.txt, expected a name that ends in .npy or .parquet\n"
    )
    assert command("bare.npy", states) == 2
    assert "is no sentence encoder, expected one, or pooling=mean" in capsys.readouterr().err
    assert command("bare.npy", states, "pooling=mean") == 0 and np.load(tmp_path / "bare.npy").shape == (150, 8)


@pytest.mark.slow
def test_killed_and_run_again(model, tmp_path):
    file, out = tmp_path / "many.jsonl", tmp_path / "out.npy"
    file.write_text("".join(json.dumps({"text": text_of(n)}) + "\n" for n in range(20_000)))
    code = "import sys; from jaxformer.cli import main; sys.argv[0] = 'jaxformer'; main()"
    command = [sys.executable, "-c", code, "embed", "--model", str(model), "--file", str(file), "--out", str(out)]
    process = subprocess.Popen(command)
    while not out.exists() or out.stat().st_size < 1000 * 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert out.stat().st_size < 20_000 * 20
    assert subprocess.run(command, check=True).returncode == 0
    assert np.load(out).shape == (20_000, 5)


@pytest.mark.filterwarnings("ignore:.*a text of")
def test_text_ranking(tmp_path_factory):
    folder = tiny.save(tmp_path_factory.mktemp("score"), "number")
    pipe, logits = jaxformer.pipeline("text-ranking", folder), jaxformer.pipeline("text-classification", folder)
    pairs = [{"text": TEXTS[0], "text_pair": text} for text in TEXTS[1:]]
    scores = [1 / (1 + np.exp(-x["score"])) for x in logits(pairs, function_to_apply="none")]
    found = pipe(TEXTS[0], TEXTS[1:])
    assert [x["corpus_id"] for x in found] == np.argsort(-np.array(scores)).tolist()
    for x in found:
        np.testing.assert_allclose(x["score"], scores[x["corpus_id"]], atol=1e-5)
        assert x["text"] == TEXTS[1 + x["corpus_id"]]
    assert pipe([{"query": TEXTS[0], "documents": TEXTS[1:]}], top_k=1) == [found[:1]]
    assert pipe(TEXTS[0], []) == []
    with pytest.raises(UserError, match=r"documents is 'rain', expected a list of texts"):
        pipe("rain", "rain")
    with pytest.raises(UserError, match="has 3 classes, expected a model with one score"):
        jaxformer.pipeline("text-ranking", tiny.save(tmp_path_factory.mktemp("classes"), "classes"))
