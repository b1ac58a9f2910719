"""Every family with every head, as PyTorch ``transformers`` computes it from weights that anyone can make again.

    pip install -e ".[test,parity]" && python -m tests.golden.heads

Weights are drawn by NumPy from the parameter's name, so that the golden file holds names, shapes and results alone:
outputs for rows of different lengths, each without padding; the loss; and of every gradient its product with a random
direction.
"""

import json
import zlib
from pathlib import Path

import numpy as np

from tests.golden import experts

FILE = Path(__file__).parent / "heads.json"

VOCABULARY, PADDING, START = 31, 30, 1
LENGTHS = (9, 5, 6)  # the first row is whole, the second is padded right, the third left where the model can tell
TOKENS = {"pad_token_id": PADDING, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": START}
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}

BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 15,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 22,
    "max_position_embeddings": 16,
}
DEBERTA = {
    **BERT,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "p2c|c2p",
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 4,
    "max_relative_positions": 7,
}
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 15,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 22,
    "max_position_embeddings": 16,
}
ROBERTA = {**BERT, "max_position_embeddings": 18, "type_vocab_size": 1, "pad_token_id": 1}
SMALL = {**BERT, "hidden_size": 12, "num_attention_heads": 3}
LLAMA = {**SMALL, "num_key_value_heads": 1, "tie_word_embeddings": False}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
GEMMA2 = {
    **LLAMA,
    "head_dim": 6,
    "num_hidden_layers": 3,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 5,
    "sliding_window": 4,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
GEMMA3 = {
    **{key: value for key, value in GEMMA2.items() if "softcapping" not in key},
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
    },
}
MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 12, "num_hidden_layers": 2, "state_size": 5, "time_step_rank": 3}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 15,
    "d_kv": 4,
    "d_ff": 22,
    "num_heads": 3,
    "num_layers": 2,
    "relative_attention_num_buckets": 8,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 15,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 22,
    "decoder_ffn_dim": 22,
    "max_position_embeddings": 16,
}
STATIC = {**BART, "d_model": 12, "scale_embedding": True}
GATED_T5 = {**T5, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 3, "tie_word_embeddings": False}

IDS = {"pad_token_id": PADDING, "bos_token_id": 1, "eos_token_id": 2}
READS = {"is_decoder": True, "add_cross_attention": True}
# Sides of other widths, so that one is not taken for the other.
BERT_TO_BERT = {
    "encoder": {**BERT, **IDS, "model_type": "bert"},
    "decoder": {**BERT, **IDS, **READS, "model_type": "bert", "num_hidden_layers": 3, "intermediate_size": 10},
}
ALBERT_TO_GPT2 = {
    "encoder": {**BERT, **IDS, "model_type": "albert", "embedding_size": 9, "hidden_dropout_prob": 0.0},
    "decoder": {
        **IDS,
        **READS,
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_embd": 12,
        "n_layer": 3,
        "n_head": 2,
        "n_positions": 16,
    },
}
T5GEMMA_SIDE = {**{key: value for key, value in GEMMA2.items() if key != "tie_word_embeddings"}, **ROPE, **IDS}
T5GEMMA = {
    "encoder": {**T5GEMMA_SIDE, "hidden_size": 15, "num_hidden_layers": 2},
    "decoder": T5GEMMA_SIDE,
    "vocab_size": VOCABULARY,
}

# Case: family of ours, model_type of theirs, its configuration. Sizes are odd, so that no axis is taken for another.
FAMILIES = {
    "bert": ("bert", "bert", BERT),
    "big_bird": ("big_bird", "big_bird", {**BERT, "block_size": 2, "num_random_blocks": 1}),
    "roberta": ("roberta", "roberta", ROBERTA),
    "xlm_roberta": ("xlm_roberta", "xlm-roberta", ROBERTA),
    "roberta_prelayernorm": ("roberta_prelayernorm", "roberta-prelayernorm", ROBERTA),
    "mpnet": ("mpnet", "mpnet", ROBERTA),
    "roformer": ("roformer", "roformer", {**BERT, "hidden_size": 18, "embedding_size": 9}),
    "deberta_v2": ("deberta_v3", "deberta-v2", {**DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta_v3": ("deberta_v3", "deberta-v2", DEBERTA),
    "distilbert": ("distilbert", "distilbert", DISTILBERT),
    "electra": ("electra", "electra", {**BERT, "embedding_size": 9}),
    "albert": ("albert", "albert", {**BERT, "embedding_size": 9, "hidden_dropout_prob": 0.0}),
    "modernbert": (
        "modernbert",
        "modernbert",
        {**BERT, "hidden_size": 18, "num_hidden_layers": 4, "local_attention": 6, "classifier_pooling": "mean"},
    ),
    "modernbert_decoder": (
        "modernbert_decoder",
        "modernbert-decoder",
        {**BERT, "hidden_size": 18, "num_hidden_layers": 4, "local_attention": 6},
    ),
    "clip_text": ("clip_text", "clip_text_model", {**BERT, "projection_dim": 7}),
    "gpt2": ("gpt2", "gpt2", {"vocab_size": VOCABULARY, "n_embd": 15, "n_layer": 2, "n_head": 3, "n_positions": 16}),
    "gpt2_untied": (
        "gpt2",
        "gpt2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 15,
            "n_layer": 2,
            "n_head": 5,
            "n_positions": 16,
            "n_inner": 22,
            "tie_word_embeddings": False,
        },
    ),
    "gpt1": (
        "gpt1",
        "openai-gpt",
        {"vocab_size": VOCABULARY, "n_embd": 15, "n_layer": 2, "n_head": 3, "n_positions": 16},
    ),
    "gpt_neo": (
        "gpt_neo",
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 15,
            "num_layers": 2,
            "num_heads": 3,
            "max_position_embeddings": 16,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
        },
    ),
    "gptj": (
        "gptj",
        "gptj",
        {"vocab_size": VOCABULARY, "n_embd": 18, "n_layer": 2, "n_head": 3, "n_positions": 16, "rotary_dim": 4},
    ),
    "gpt_neox": (
        "gpt_neox",
        "gpt_neox",
        {**SMALL, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    ),
    "opt": ("opt", "opt", {**SMALL, "ffn_dim": 10, "word_embed_proj_dim": 12}),
    "xglm": (
        "xglm",
        "xglm",
        {
            "vocab_size": VOCABULARY,
            "d_model": 18,
            "ffn_dim": 22,
            "num_layers": 2,
            "attention_heads": 3,
            "max_position_embeddings": 16,
            "pad_token_id": 1,
        },
    ),
    "bloom": ("bloom", "bloom", {"vocab_size": VOCABULARY, "hidden_size": 9, "n_layer": 2, "n_head": 3}),
    "llama": ("llama", "llama", {**LLAMA, **ROPE, "head_dim": 6}),
    "llama_tied": ("llama", "llama", {**LLAMA, **ROPE, "num_key_value_heads": 3, "tie_word_embeddings": True}),
    "mistral": ("mistral", "mistral", {**LLAMA, **ROPE, "sliding_window": 4}),
    "qwen2": ("qwen2", "qwen2", {**LLAMA, **ROPE, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", "qwen3", {**LLAMA, **ROPE, "head_dim": 6}),
    "mixtral": ("mixtral", "mixtral", {**LLAMA, **ROPE, "num_local_experts": 5, "sliding_window": 4}),
    "qwen3_moe": (
        "qwen3_moe",
        "qwen3_moe",
        {
            **LLAMA,
            **ROPE,
            "head_dim": 6,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 10,
            "norm_topk_prob": True,
        },
    ),
    "olmoe": ("olmoe", "olmoe", {**LLAMA, **ROPE, "num_experts": 5, "num_experts_per_tok": 2, "clip_qkv": 0.9}),
    "mamba": ("mamba", "mamba", MAMBA),
    "mamba2": ("mamba2", "mamba2", {**MAMBA, "num_heads": 6, "head_dim": 4, "n_groups": 2, "chunk_size": 4}),
    "gemma": ("gemma", "gemma", {**LLAMA, **ROPE, "head_dim": 6, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", "gemma2", {**GEMMA2, **ROPE}),
    "gemma3": ("gemma3", "gemma3_text", {**GEMMA3, "sliding_window": 4}),
    "embedding_gemma": (
        "embedding_gemma",
        "gemma3_text",
        {**GEMMA3, "sliding_window": 6, "use_bidirectional_attention": True},
    ),
    "phi": (
        "phi",
        "phi",
        {**SMALL, "hidden_size": 24, "rope_parameters": {**ROPE["rope_parameters"], "partial_rotary_factor": 0.5}},
    ),
    "phi3": ("phi3", "phi3", {**LLAMA, **ROPE, "sliding_window": 4}),
    "olmo": ("olmo", "olmo", {**LLAMA, **ROPE, "clip_qkv": 0.7}),
    "olmo2": ("olmo2", "olmo2", {**LLAMA, **ROPE}),
    "t5": ("t5", "t5", T5),
    "t5_v1_1": ("t5_v1_1", "t5", GATED_T5),
    "mt5": ("mt5", "mt5", {**GATED_T5, "d_kv": 5}),
    "umt5": ("umt5", "umt5", {**GATED_T5, "d_kv": 5}),
    "longt5": (
        "longt5",
        "longt5",
        {**GATED_T5, "local_radius": 1, "encoder_attention_type": "transient-global", "global_block_size": 3},
    ),
    "longt5_local": ("longt5", "longt5", {**GATED_T5, "local_radius": 2}),
    "bart": ("bart", "bart", BART),
    "mbart": ("mbart", "mbart", {**BART, "scale_embedding": True}),
    "m2m100": ("m2m100", "m2m_100", {**STATIC, "pad_token_id": 0, "decoder_attention_heads": 2, "decoder_ffn_dim": 10}),
    "blenderbot": ("blenderbot", "blenderbot", {**BART, "scale_embedding": True}),
    "blenderbot_small": ("blenderbot_small", "blenderbot-small", BART),
    "marian": ("marian", "marian", {**STATIC, "activation_function": "swish"}),
    "pegasus": ("pegasus", "pegasus", {**STATIC, "activation_function": "relu"}),
    "t5gemma": ("t5gemma", "t5gemma", T5GEMMA),
    "bert_to_bert": ("encoder_decoder", "encoder-decoder", BERT_TO_BERT),
    "albert_to_gpt2": ("encoder_decoder", "encoder-decoder", ALBERT_TO_GPT2),
}
KINDS = {
    "body": "AutoModel",
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "text_encoding": "AutoModelForTextEncoding",
    "text_projection": "CLIPTextModelWithProjection",
    "pre_training": "AutoModelForPreTraining",
    "next_sentence_prediction": "AutoModelForNextSentencePrediction",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "multiple_choice": "AutoModelForMultipleChoice",
}


# Those whose decoder does not read the shifted text where nothing is given for it.
NOT_SHIFTED = (
    "t5",
    "longt5",
    "mt5",
    "umt5",
    "marian",
    "pegasus",
    "m2m_100",
    "blenderbot",
    "blenderbot-small",
    "t5gemma",
)


def is_bidirectional(name):
    """True for a family that is a causal language model only where its configuration says so."""
    from jaxformer.families import FAMILIES as OURS

    return OURS[FAMILIES[name][0]].defaults.get("architecture", "decoder") != "decoder"


def cases():
    """All names ``family/kind`` that the families' formats have."""
    from jaxformer.families import FAMILIES as OURS

    return [f"{name}/{kind}" for name, (family, _, _) in FAMILIES.items() for kind in OURS[family].hub.heads]


def draw(name, shape, purpose="value"):
    """The values of a parameter, or the direction its gradient is multiplied with: a pure function of its name."""
    values = np.random.default_rng(zlib.crc32(f"{purpose}/{name}".encode())).standard_normal(shape)
    if purpose != "value":
        return values.astype(np.float32)
    values = values * 0.4
    is_norm = "norm" in name.lower() or ".ln_" in name
    return (values + (1.0 if is_norm and name.endswith("weight") else 0.0)).astype(np.float32)


def rows(kind):
    """The texts, one array each ``[T]``; for multiple choice ``[2, T]``. A text ends with the end-of-text token."""
    random = np.random.default_rng(1)
    shape = (2,) if kind == "multiple_choice" else ()
    texts = [random.integers(3, PADDING, (*shape, length)) for length in LENGTHS]
    for text in texts:
        text[..., -1] = TOKENS["eos_token_id"]
    return texts


def targets(kind):
    """What each text is trained on, as long as the text or one number."""
    random = np.random.default_rng(2)
    if kind in ("sequence_classification", "multiple_choice", "next_sentence_prediction"):
        return [np.array(i % 2) for i in range(len(LENGTHS))]
    if kind == "question_answering":
        return [np.array([1, length - 2]) for length in LENGTHS]
    size = 3 if kind == "token_classification" else VOCABULARY - 1
    return [random.integers(0, size, length) for length in LENGTHS]


def opener_of(case):
    """The class of PyTorch that opens a case; of LongT5's encoder no automatic class knows."""
    import transformers

    name, kind = case.split("/")
    own = kind == "text_encoding" and FAMILIES[name][1] == "longt5"
    return getattr(transformers, "LongT5EncoderModel" if own else KINDS[kind])


def torch_model(case, **changes):
    """The PyTorch model of a case, its weights drawn by their names; ``changes`` replace keys of its configuration."""
    import torch
    import transformers

    name, kind = case.split("/")
    _, model_type, keys = FAMILIES[name]
    keys = {**keys, **changes}
    if kind == "causal_lm" and is_bidirectional(name):
        keys = {**keys, "is_decoder": True, "is_encoder_decoder": False}
    config = transformers.AutoConfig.for_model(
        model_type, **{**TOKENS, **keys}, **(LABELS if "token" in kind or "sequence" in kind else {})
    )
    opener = opener_of(case)
    config._attn_implementation = "eager"
    model = (opener.from_config(config) if hasattr(opener, "from_config") else opener(config)).eval()
    experts.with_odd_experts(model)
    if kind == "seq2seq_lm" and keys.get("tie_word_embeddings") is False:
        # transformers 5 ties the head of every T5 and unties it in loading, where the checkpoint has both.
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    if model_type == "marian" and kind == "seq2seq_lm":
        # A buffer that training has filled; with a gradient here, to compare it.
        model.final_logits_bias = torch.nn.Parameter(torch.zeros_like(model.final_logits_bias))
    with torch.no_grad():
        for key, parameter in parameters(model).items():
            parameter.copy_(torch.from_numpy(draw(key, tuple(parameter.shape))))
    return model


def parameters(model):
    """Its parameters by the names they have in files, a tied one once, without frozen ones (sinusoids)."""
    renamed = {"lm_head.weight": "embed_out.weight"} if model.config.model_type == "gpt_neox" else {}
    names = {}
    for key, p in experts.unfused(model, model.named_parameters(remove_duplicate=False)):
        if p.requires_grad:
            names.setdefault(p, []).append(key)
    tied = model.all_tied_weights_keys
    # Of a tied parameter's names the one that is not tied to another: the embedding's, not the output layer's.
    own = {p: next((key for key in keys if key not in tied), keys[0]) for p, keys in names.items()}
    # A parameter that replaced a buffer of the whole model has a leading dot in the name.
    return {renamed.get(key, key).lstrip("."): p for p, key in own.items()}


def outputs_of(model, kind, text, target):
    """What PyTorch makes of one text without padding, and its loss."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    ids = torch.tensor(text)[None]
    extra = {}
    if kind == "seq2seq_lm":
        extra["decoder_input_ids"] = torch.tensor([[START, *target[:-1]]])
    if kind == "body" and model.config.model_type in NOT_SHIFTED:
        extra["decoder_input_ids"] = torch.tensor([[START, *text[:-1]]])
    if kind == "question_answering" and model.config.model_type == "big_bird":
        extra["token_type_ids"] = torch.zeros_like(ids)  # else it makes types of its own
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra)
    if kind == "text_projection":
        states = {"text_embeds": output.text_embeds[0]}
        return states, torch.mean(torch.sin(output.text_embeds))
    if kind in ("body", "text_encoding"):
        states = {"last_hidden_state": output.last_hidden_state[0]}
        if getattr(output, "pooler_output", None) is not None:
            states["pooler_output"] = output.pooler_output[0]
        return states, sum(torch.mean(torch.sin(state)) for state in states.values())
    truth = torch.tensor(target)
    if kind == "question_answering":
        scores = {"start_logits": output.start_logits[0], "end_logits": output.end_logits[0]}
        return scores, sum(cross_entropy(s[None], truth[i : i + 1]) for i, s in enumerate(scores.values()))
    logits = next(getattr(output, k) for k in ("logits", "prediction_logits") if getattr(output, k, None) is not None)
    logits = logits[0]
    if kind == "pre_training" and logits.ndim == 1:
        return {"logits": logits}, binary_cross_entropy_with_logits(logits, (truth % 2).float())
    if kind == "pre_training":
        pairs = next(
            v for k in ("seq_relationship_logits", "sop_logits") if (v := getattr(output, k, None)) is not None
        )
        loss = cross_entropy(logits, truth) + cross_entropy(pairs, truth[:1] % 2)
        return {"logits": logits, "pair_logits": pairs[0]}, loss
    if logits.ndim == 1:
        return {"logits": logits}, cross_entropy(logits[None], truth[None])
    return {"logits": logits}, cross_entropy(logits, truth)


def make(case):
    """Names, shapes and results of a case, by PyTorch, as lists."""
    import torch

    model = torch_model(case)
    kind = case.split("/")[1]
    results, total = [], 0.0
    for text, target in zip(rows(kind), targets(kind), strict=True):
        outputs, loss = outputs_of(model, kind, text, target)
        results.append({key: value.detach().numpy().tolist() for key, value in outputs.items()})
        total = total + loss
    total.backward()
    # A tied T5 head has no gradient of its own; a pooler that a head does not use has none.
    gradients = {
        key: 0.0
        if p.grad is None
        else float(torch.sum(p.grad.double() * torch.from_numpy(draw(key, tuple(p.shape), "direction")).double()))
        for key, p in parameters(model).items()
    }
    return {
        "config": {k: v for k, v in model.config.to_dict().items() if k != "transformers_version"},
        "shapes": {key: list(p.shape) for key, p in parameters(model).items()},
        "outputs": results,
        "loss": float(total.detach()),
        "gradients": gradients,
    }


def _short(value):
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, list):
        return [_short(v) for v in value]
    return {k: _short(v) for k, v in value.items()} if isinstance(value, dict) else value


def load():
    """The golden file."""
    return json.loads(FILE.read_text())


if __name__ == "__main__":
    made = {case: _short(make(case)) for case in cases()}
    FILE.write_text("{\n" + ",\n".join(f'"{k}": {json.dumps(v, default=str)}' for k, v in made.items()) + "\n}\n")
    print(f"{FILE} {FILE.stat().st_size / 1000:.0f} kB, {len(made)} cases")
