"""Makes ``flax.json``: checkpoints as the Flax models of ``transformers`` 4 wrote them, and what those models computed.

    pip install "transformers==4.49.0" "jax==0.4.38" "jaxlib==0.4.38" "flax==0.10.2" "numpy==2.1.3"
    python -m tests.golden.flax

in an environment of its own with Python 3.11: later versions of ``transformers`` have no Flax models. Weights are drawn
by NumPy from the parameter's name, as in ``tests.golden.heads``, so that the golden file holds the names, shapes and
types that were read out of each written file, and the logits. The files of a few cases are kept whole, byte for byte.
"""

import base64
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.golden import heads

FILE = Path(__file__).parent / "flax.json"
VOCABULARY = 17

# Sizes are odd where they may be, so that no axis is taken for another.
TOKENS = {"pad_token_id": 16, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 9,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 10,
    "max_position_embeddings": 12,
}
ROBERTA = {**BERT, "max_position_embeddings": 14, "type_vocab_size": 1, "pad_token_id": 1}
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 9,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 10,
    "max_position_embeddings": 12,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 9, "n_layer": 2, "n_head": 3, "n_positions": 12, "n_inner": 10}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 9,
    "d_kv": 2,
    "d_ff": 10,
    "num_heads": 3,
    "num_layers": 2,
    "relative_attention_num_buckets": 8,
}
GATED_T5 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 10,
    "decoder_ffn_dim": 10,
    "max_position_embeddings": 12,
}
LLAMA = {**BERT, "hidden_size": 12, "num_key_value_heads": 1, "tie_word_embeddings": False}
STATIC = {**BART, "scale_embedding": True}

# Case: class of theirs without "Flax", our kind, its configuration.
CASES = {
    "bert_body": ("BertModel", "body", BERT),
    "bert": ("BertForMaskedLM", "masked_lm", BERT),
    "bert_pre_training": ("BertForPreTraining", "pre_training", BERT),
    "bert_classes": ("BertForSequenceClassification", "sequence_classification", {**BERT, "num_labels": 3}),
    "bert_questions": ("BertForQuestionAnswering", "question_answering", BERT),
    "roberta": ("RobertaForMaskedLM", "masked_lm", ROBERTA),
    "roberta_classes": ("RobertaForSequenceClassification", "sequence_classification", ROBERTA),
    "xlm_roberta": ("XLMRobertaForTokenClassification", "token_classification", ROBERTA),
    "distilbert": ("DistilBertForMaskedLM", "masked_lm", DISTILBERT),
    "distilbert_classes": ("DistilBertForSequenceClassification", "sequence_classification", DISTILBERT),
    "electra": ("ElectraForPreTraining", "pre_training", {**BERT, "embedding_size": 7}),
    "electra_masked": ("ElectraForMaskedLM", "masked_lm", {**BERT, "embedding_size": 7}),
    "albert": ("AlbertForMaskedLM", "masked_lm", {**BERT, "embedding_size": 7}),
    "gpt2_body": ("GPT2Model", "body", GPT2),
    "gpt2": ("GPT2LMHeadModel", "causal_lm", GPT2),
    "gpt2_untied": ("GPT2LMHeadModel", "causal_lm", {**GPT2, "tie_word_embeddings": False}),
    "t5": ("T5ForConditionalGeneration", "seq2seq_lm", T5),
    "t5_v1_1": ("T5ForConditionalGeneration", "seq2seq_lm", GATED_T5),
    "mt5": ("MT5ForConditionalGeneration", "seq2seq_lm", GATED_T5),
    "bart": ("BartForConditionalGeneration", "seq2seq_lm", BART),
    "mbart": ("MBartForConditionalGeneration", "seq2seq_lm", STATIC),
    "marian": ("MarianMTModel", "seq2seq_lm", {**STATIC, "activation_function": "swish"}),
    "pegasus": ("PegasusForConditionalGeneration", "seq2seq_lm", {**STATIC, "activation_function": "relu"}),
    "opt": ("OPTForCausalLM", "causal_lm", {**BERT, "hidden_size": 12, "ffn_dim": 10, "word_embed_proj_dim": 12}),
    # Their own ALiBi fails for numbers of heads that are no power of two.
    "bloom": (
        "BloomForCausalLM",
        "causal_lm",
        {"vocab_size": VOCABULARY, "hidden_size": 12, "n_layer": 2, "n_head": 4},
    ),
    "llama": ("LlamaForCausalLM", "causal_lm", LLAMA),
    # Their window lets a token see one more than it says, which no PyTorch model does: here it is never reached.
    "mistral": ("MistralForCausalLM", "causal_lm", {**LLAMA, "sliding_window": 12}),
    "gemma": ("GemmaForCausalLM", "causal_lm", {**LLAMA, "head_dim": 6, "tie_word_embeddings": True}),
}
# Cases whose files are kept: the options of save_pretrained, and the type of the parameters.
KEPT = {
    "bert_classes": ({}, "float32"),
    "gpt2": ({"max_shard_size": "2KB"}, "float32"),
    "t5": ({}, "bfloat16"),
}
# Final biases are buffers in PyTorch, which only Marian's training fills.
ZEROS = ("bart", "mbart", "pegasus")


def inputs(kind):
    """What the models are called with: two rows, the second padded to the right."""
    random = np.random.default_rng(3)
    ids = random.integers(3, TOKENS["pad_token_id"], (2, 7))
    mask = np.ones((2, 7), np.int32)
    ids[1, 5:], mask[1, 5:] = TOKENS["pad_token_id"], 0
    batch = {"input_ids": ids.astype(np.int32), "attention_mask": mask}
    if kind == "seq2seq_lm":
        batch["decoder_input_ids"] = random.integers(3, TOKENS["pad_token_id"], (2, 4)).astype(np.int32)
    return batch


def draw(case, path, shape, dtype):
    """The values of the parameter at ``path``."""
    if case in ZEROS and path == "final_logits_bias":
        return np.zeros(shape, np.float32)
    # A norm's scale is drawn around one, wherever it is called a weight.
    name = f"{path}.weight" if path.endswith("scale") else path
    return heads.draw(name, tuple(shape)).astype(dtype)


def rounded(value):
    """Seven digits of every number."""
    return [rounded(item) for item in value] if isinstance(value, list) else float(f"{value:.7g}")


def outputs_of(result, kind):
    """The results of a model by the names that they have here."""
    own = {"question_answering": ("start_logits", "end_logits"), "body": ("last_hidden_state", "pooler_output")}
    names = own.get(kind, ("logits", "prediction_logits"))
    found = {name: getattr(result, name) for name in names if getattr(result, name, None) is not None}
    if "prediction_logits" in found:
        found = {"logits": found["prediction_logits"], "pair_logits": result.seq_relationship_logits}
    return {name: rounded(np.asarray(value, np.float32).tolist()) for name, value in found.items()}


def read_back(folder):
    """The arrays of the files of a folder, by their paths in the tree, and the files each is in."""
    from flax.serialization import msgpack_restore
    from flax.traverse_util import flatten_dict

    found = {}
    for path in sorted(folder.glob("*.msgpack")):
        found |= flatten_dict(msgpack_restore(path.read_bytes()), sep="/")
    return found


def make(case, folder):
    """What is kept of a case; its checkpoint is written to the folder."""
    import jax.numpy as jnp
    import transformers
    from flax.core import freeze
    from flax.traverse_util import flatten_dict, unflatten_dict

    name, kind, keys = CASES[case]
    options, dtype = KEPT.get(case, ({}, "float32"))
    cls = getattr(transformers, f"Flax{name}")
    model = cls(cls.config_class(**{**TOKENS, **keys}), seed=0)
    flat = flatten_dict(dict(model.params), sep="/")
    drawn = {path: jnp.asarray(draw(case, path, leaf.shape, dtype)) for path, leaf in flat.items()}
    model.params = freeze(unflatten_dict(drawn, sep="/"))
    model.save_pretrained(folder, **options)
    written = read_back(folder)
    assert written.keys() == drawn.keys(), case
    batch = {key: jnp.asarray(value) for key, value in inputs(kind).items()}
    if model.config.model_type == "electra":  # whose default there is the second type
        batch["token_type_ids"] = jnp.zeros_like(batch["input_ids"])
    result = model(**batch)
    kept = {
        "config": json.loads((folder / "config.json").read_text()),
        "arrays": {path: [str(leaf.dtype), *leaf.shape] for path, leaf in written.items()},
        "outputs": outputs_of(result, kind),
    }
    if case in KEPT:
        files = sorted(path for path in folder.iterdir() if path.name.startswith("flax_model"))
        kept["files"] = {path.name: base64.b64encode(path.read_bytes()).decode() for path in files}
    return kept


def load():
    """The golden file."""
    return json.loads(FILE.read_text())


def main():
    """Writes the golden file; with an argument, also every checkpoint into that folder."""
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        made = {case: make(case, root / case) for case in CASES}
    FILE.write_text("{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in made.items()) + "\n}\n")
    print(f"{FILE} {FILE.stat().st_size / 1000:.0f} kB, {len(made)} cases")


if __name__ == "__main__":
    main()
