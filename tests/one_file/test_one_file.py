"""A model as one file: the library's bits, without the library, and only the code that its configuration needs."""

import ast
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

import jaxformer.one_file
from jaxformer.cli import run as run_command
from jaxformer.families import FAMILIES
from jaxformer.hub import AutoModelForMaskedLM, AutoModelForPreTraining
from jaxformer.models import TransformerConfig
from jaxformer.models.heads import Body, MultipleChoice
from jaxformer.models.masked_lm import Discriminator
from jaxformer.models.transformer import EncoderDecoder
from jaxformer.one_file import read_source, render
from jaxformer.one_file.families import ACTIVATIONS, PAPERS, WRITTEN
from jaxformer.one_file.parameters import parameter_table
from jaxformer.schema import UserError
from jaxformer.training.export import load_run
from tests.hub import tiny as hub_tiny
from tests.models.tiny import random_params, tiny, tokens
from tests.one_file.cases import NAMES, is_written, model_of, outputs_of
from tests.training.helpers import run_training, tiny_keys

ROOT = Path(__file__).parents[2]
SOME = ("gpt2", "llama", "bert", "t5")
each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in NAMES]
)


def opened(text):
    """The module of a file's text."""
    module = types.ModuleType("out")
    exec(compile(text, "out.py", "exec"), module.__dict__)
    return module


def both(model, file):
    """The library's function and the file's of the same arguments, each of which returns a list of arrays."""

    def library(params, input_ids, attention_mask, others):
        return outputs_of(model.apply({"params": params}, input_ids, attention_mask, **others))

    def plain(params, input_ids, attention_mask, others):
        return jax.tree.leaves(file.forward(params, input_ids, attention_mask=attention_mask, **others))

    return library, plain


def arguments_of(model, rows, length):
    """Token ids, masks (none, padding before and behind), and what else the model reads."""
    ids, others = tokens(rows, length, seed=1), {}
    if isinstance(model, EncoderDecoder):
        others["decoder_input_ids"] = tokens(rows, max(1, length - 3), seed=2)
    if model.config.token_types > 1:
        others["token_type_ids"] = (jnp.arange(length)[None] % 2).repeat(rows, 0)
    left = jnp.arange(length)[None] >= 2 * jnp.arange(rows)[:, None]
    return ids, (None, left, left[:, ::-1]), others


def assert_same_bits(model, file, rows=3, length=11):
    params = random_params(model.config, model)
    library, plain = (jax.jit(function) for function in both(model, file))
    ids, masks, others = arguments_of(model, rows, length)
    for mask in masks:
        expected, got = library(params, ids, mask, others), plain(params, ids, mask, others)
        assert len(got) == len(expected) > 0
        for ours, theirs in zip(got, expected, strict=True):
            assert ours.dtype == theirs.dtype == jnp.float32 and np.isfinite(ours).all() and np.ptp(ours) > 0
            np.testing.assert_array_equal(ours, theirs)


def assert_clean(text, tmp_path):
    """As a formatter and a linter want it, at two widths of the line."""
    imported = {node.names[0].name.partition(".")[0] for node in ast.walk(ast.parse(text)) if type(node) is ast.Import}
    imported |= {node.module.partition(".")[0] for node in ast.walk(ast.parse(text)) if type(node) is ast.ImportFrom}
    assert imported <= {"jax", "numpy", "math", "pathlib", "safetensors"} and "flax" not in text
    assert max(map(len, text.splitlines())) <= 88
    if shutil.which("ruff"):
        path = tmp_path / "out.py"
        path.write_text(text)
        for options in (["--isolated"], ["--config", str(ROOT / "pyproject.toml")]):
            for command in (["format", "--check"], ["check"]):
                found = subprocess.run(["ruff", *command, *options, path], capture_output=True, text=True)
                assert found.returncode == 0, found.stdout


@each
def test_bits_and_style(name, tmp_path):
    model = model_of(name)
    text = render(model, name)
    file = opened(text)
    assert_clean(text, tmp_path)
    shapes = jax.eval_shape(file.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, random_params(model.config, model))
    assert_same_bits(model, file)


@pytest.mark.parametrize("name", ["gpt2", "mistral", "t5"])
@pytest.mark.default_cases("gpt2")
def test_long_rows_have_the_bits_of_the_reference(name):
    """Of more than 64 tokens the library leaves out blocks of scores, which changes the last bits."""
    switches = {"max_length": 80, **({"window": 9} if name == "mistral" else {})}
    model = model_of(name, attention_implementation="reference", **switches)
    file = opened(render(model, name))
    assert_same_bits(model, file, 2, 80)
    blocked = model_of(name, **switches)
    params = random_params(model.config, model)
    ids, masks, others = arguments_of(model, 2, 80)
    library, plain = both(blocked, file)
    expected, got = (jax.jit(function)(params, ids, masks[1], others)[0] for function in (library, plain))
    np.testing.assert_allclose(got[1, 2:], expected[1, 2:], atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_operation_by_operation_it_is_equal_up_to_rounding(name):
    model = model_of(name)
    params = random_params(model.config, model)
    library, plain = both(model, opened(render(model, name)))
    ids, masks, others = arguments_of(model, 3, 11)
    expected, got = (function(params, ids, masks[1], others)[0] for function in (library, plain))
    np.testing.assert_allclose(got, expected, atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "t5", "gemma", "head_norms", "transformer", "bert"])
def test_initial_values_are_distributed_as_the_library_s(name):
    model = model_of(name, hidden_size=48, num_heads=6, vocab_size=211)
    ours = flatten_dict(opened(render(model, name)).init(jax.random.key(0)), sep="/")
    inputs = jnp.zeros((1, 2), jnp.int32)
    theirs = flatten_dict(nn.unbox(model.init(jax.random.key(1), inputs))["params"], sep="/")
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        # The deviation of n normal numbers is known to one part in sqrt(2n).
        room = 6 / (2 * array.size) ** 0.5 * float(np.std(theirs[path]))
        np.testing.assert_allclose(np.std(array), np.std(theirs[path]), atol=room, rtol=0, err_msg=path)
        np.testing.assert_allclose(np.mean(array), np.mean(theirs[path]), atol=2 * room, rtol=0, err_msg=path)


def test_only_what_the_configuration_needs():
    texts = {name: render(model_of(name), name) for name in SOME}
    assert not re.search(
        r"rotat|rotary|gate|rms_norm|bucket|slope|source|window|import math|numpy as np", texts["gpt2"]
    )
    assert not re.search(r"bias|layer_norm|OFFSET|token_type|tanh", texts["llama"])
    assert not re.search(r"causal|final_norm|rotary|greedy", texts["bert"])
    assert not re.search(r"sinus|learned position|number_tokens|rotary|H\*\*", texts["t5"])
    for text in texts.values():
        defined = {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
        # A reader may call ``init`` or ``load``, of which the demonstration needs one.
        assert [name for name in defined - {"load"} if len(re.findall(rf"\b{name}\b", text)) < 2] == []
        constants = re.findall(r"^([A-Z]\w*) = ", text, re.MULTILINE)
        assert [name for name in constants if len(re.findall(rf"\b{name}\b", text)) < 2] == []


def test_the_page_shows_what_is_written():
    page = (ROOT / "docs" / "one_file.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown.strip() in render(read_source("gpt2").model, "gpt2")
    families = re.findall(r"^\| (\w+) \| (\w+(?:-\w+)?) \|.*\| yes \|$", page, re.MULTILINE)
    assert {name: architecture.replace("-", "_") for name, architecture in families} == {
        name: FAMILIES[name].defaults.get("architecture", "decoder") for name in FAMILIES if is_written(name)
    }
    without = re.findall(r"^\| (\w+) \|.*\| no \|$", page, re.MULTILINE)
    assert without == [name for name in FAMILIES if not is_written(name)]


def test_every_switch_of_a_model_is_known_here():
    """A switch that is added to the library and forgotten here would be left out of the files in silence."""
    folder = Path(jaxformer.one_file.__file__).parent
    text = "".join(path.read_text() for path in folder.rglob("*") if path.suffix in (".py", ".j2"))
    # What they are called once resolved, and what does not change an evaluation in float32.
    resolved = {"num_kv_heads": "kv_heads", "head_size": "head_width", "intermediate_size": "inner_size"}
    resolved |= {"num_decoder_layers": "decoder_layers", "qkv_bias": "has_qkv_bias", "pooling": "pooled_state"}
    resolved |= {"attention_output_bias": "has_output_bias", "feed_forward_bias": "has_feed_forward_bias"}
    resolved |= {"num_decoder_heads": "decoder_heads", "decoder_intermediate_size": "decoder_inner_size"}
    resolved |= {
        "head_transform": "has_head_transform",
        "position_offset": "first_position",
        "rotary_fraction": "rotary_size",
        "eos_token_id": "end_ids",
    }
    elsewhere = {"pretrained", "bos_token_id", "generation", "dropout", "attention_dropout", "numerics", "remat"}
    elsewhere |= {"unroll", "attention_implementation"}
    # Told by the names of the parameters.
    elsewhere |= {"token_pooler", "logits_bias", "choice_pooler", "projection_size"}
    # Of models that have no file.
    elsewhere |= {"experts_per_token", "normalize_expert_weights", "balance_loss", "router_z_loss"}
    elsewhere |= {"num_random_blocks", "embedding_conv_activation"}
    elsewhere |= {"state_size", "state_groups", "conv_size", "time_step_rank"}
    names = {resolved.get(name, name) for name in TransformerConfig.model_fields.keys() - elsewhere}
    names -= set(WRITTEN)
    assert sorted(name for name in names if not re.search(rf"\bc(onfig\.model)?\.{name}\b", text)) == []
    assert PAPERS.keys() == {name for name in FAMILIES if is_written(name)}
    assert ACTIVATIONS.keys() == jaxformer.functional.ACTIVATIONS.keys()


@pytest.mark.parametrize(
    ("family", "printed"),
    [
        ("llama", "continued [[0 1 2 3 "),
        pytest.param("t5", "written [[", marks=pytest.mark.slow),
        pytest.param("electra", "outputs (1, 4)", marks=pytest.mark.slow),
    ],
)
def test_it_runs_where_there_is_no_jaxformer_and_no_flax(family, printed, tmp_path):
    sizes = ("model.hidden_size=16", "model.num_layers=1", "model.num_heads=2", "model.vocab_size=29")
    (tmp_path / "out.py").write_text(render(read_source(family, sizes).model, family))
    code = "import runpy, sys; sys.modules |= {'jaxformer': None, 'flax': None, 'safetensors': None}; "
    code += "runpy.run_path('out.py', run_name='__main__')"
    result = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first, *_, last = result.stdout.splitlines()
    assert re.fullmatch(r"[\d,]+ parameters", first) and last.startswith(printed)


@pytest.mark.slow
def test_of_a_run(tmp_path, capsys):
    run_training(tiny_keys(tmp_path, steps=1))
    target = tmp_path / "new" / "out.py"
    assert run_command("export", ["--one-file", str(tmp_path / "run"), str(target)]) == 0
    weights = target.with_suffix(".safetensors")
    assert capsys.readouterr().out.splitlines() == [f"written: {target}", f"written: {weights}"]
    trained, file = load_run(tmp_path / "run"), opened(target.read_text())
    model, arrays = trained.model, load_file(weights)
    assert arrays.keys() == {row.name for row in parameter_table(model)}
    ids = tokens(2, 7)
    expected = jax.jit(lambda params: model.apply({"params": params}, ids).logits)(trained.params)
    np.testing.assert_array_equal(jax.jit(file.forward)(file.load(weights), ids), expected)
    # A file of an earlier call may be replaced, also by one of a configuration alone.
    assert run_command("export", ["--one-file", str(tmp_path / "run" / "config.yaml"), str(target)]) == 0
    assert "load(Path" not in target.read_text()


def test_of_a_folder_in_the_hugging_face_format(tmp_path):
    for family, kind, opener in (
        ("roberta", "masked_lm", AutoModelForMaskedLM),
        ("electra", "pre_training", AutoModelForPreTraining),
    ):
        folder = hub_tiny.save(tmp_path / family, family, kind)
        target = tmp_path / f"{family}.py"
        assert run_command("export", ["--one-file", str(folder), str(target)]) == 0
        model, params = opener.from_pretrained(folder)
        file, ids = opened(target.read_text()), tokens(2, 7) % 17
        expected = jax.jit(lambda params, model=model, ids=ids: model.apply({"params": params}, ids).logits)(params)
        loaded = file.load(target.with_suffix(".safetensors"))
        np.testing.assert_array_equal(jax.jit(file.forward)(loaded, ids), expected)


def test_of_a_configuration(tmp_path, capsys):
    target = tmp_path / "out.py"
    arguments = [str(ROOT / "configs" / "gpt_nano.yaml"), str(target), "model.dtype=bfloat16", "model.numerics=fast"]
    assert run_command("export", ["--one-file", *arguments]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("model.vocab_size is not set: 4,096, tokenizer.vocab_size")
    assert said[1:] == ["model.dtype is bfloat16: the file computes in float32", f"written: {target}"]
    text = target.read_text()
    assert (
        "\nV = 4096 " in text
        and "\nD = 192 " in text
        and "gpt_nano.yaml model.dtype=bfloat16" in " ".join(text.split())
    )
    assert not target.with_suffix(".safetensors").exists()
    assert "50,257, the default of gpt2 in transformers" in read_source("gpt2").notes[0]
    assert "config.numerics" not in text and "exact" in read_source("gpt2", ("model.numerics=exact",)).notes[1]
    classifier = read_source("bert", ("task.type=sequence_classification", "task.labels=[a, b, c]")).model
    assert classifier.num_labels == 3
    assert isinstance(read_source("model.type=electra").model, Discriminator)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gpt2", "."], r"\. is a folder, expected a file to write"),
        (["gpt2", "out.txt"], r"out\.txt does not end in \.py, expected a Python file"),
        (["gpt2", "mine.py"], r"mine\.py exists and is no file of jaxformer export --one-file"),
        (["gpt2", "out.py", "--push", "a/b"], "--one-file is given with --adapter, --push or --dtype"),
        (["no.yaml", "out.py"], r"config file no\.yaml does not exist"),
        (["/no/folder", "out.py"], "neither a folder nor a name on the Hub"),
        (["a/b/c", "out.py", "model.dtype=float32"], "is given with a/b/c, which is trained: leave it out"),
        (["gpt2", "out.py", "tokenizer.type=byte"], "tokenizer.type is 'byte', .*give model.vocab_size=N"),
        (["bert", "out.py", "task.type=multiple_choice"], "task.type is multiple_choice, for which there is no file"),
        (["bert", "out.py", "task.type=token_classification"], "task.labels is not set .* give task.labels"),
        (["gpt2", "out.py", "model.norm_offset=0.5"], "model.norm_offset is 0.5, expected 0 or 1"),
        (
            ["llama", "out.py", "model.rope_scaling={type: dynamic, factor: 2}"],
            "model.rope_scaling.type is dynamic, expected one of linear, llama3, yarn",
        ),
    ],
)
def test_one_clear_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("print('mine')\n")
    assert run_command("export", ["--one-file", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py"]


def test_what_has_no_file_and_what_a_checkpoint_lacks(tmp_path):
    with pytest.raises(UserError, match="the model is a MultipleChoice, expected one of Decoder"):
        render(MultipleChoice(model_of("bert").config), "x")
    for name, said in (("experts", "a mixture of experts"), ("mamba", "a state-space model")):
        with pytest.raises(UserError, match=f"{said} has no file"):
            render(tiny(name)[0], "x")
    folder = hub_tiny.save(tmp_path, "bert", "body")
    assert isinstance(read_source(str(folder)).model, Body)
    hub_tiny.edit(folder, architectures=["BertForMaskedLM"])
    with pytest.raises(UserError, match=r"has no mlm_head/bias, .* expected it for its head"):
        read_source(str(folder))
