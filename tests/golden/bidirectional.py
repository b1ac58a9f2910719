"""Golden files of encoders (masked language models) and encoder-decoders, made as those of the decoders in ``make``."""

import json

import numpy as np

BERT = {
    "vocab_size": 31,
    "hidden_size": 15,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 22,
    "max_position_embeddings": 16,
}
ROBERTA = {"max_position_embeddings": 18, "type_vocab_size": 1, "pad_token_id": 1}  # positions begin behind it
DISTILBERT = {"vocab_size": 31, "dim": 15, "n_layers": 2, "n_heads": 3, "hidden_dim": 22, "max_position_embeddings": 16}
MODERNBERT = {
    "vocab_size": 31,
    "hidden_size": 18,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 22,
    "max_position_embeddings": 64,
    "local_attention": 6,
}
T5 = {"vocab_size": 31, "d_model": 15, "d_kv": 4, "d_ff": 22, "num_heads": 3, "num_layers": 2}
BART = {
    "vocab_size": 31,
    "d_model": 15,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 22,
    "decoder_ffn_dim": 22,
    "max_position_embeddings": 16,
}
STATIC = {**BART, "d_model": 12, "max_position_embeddings": 12, "scale_embedding": True}

PADDING = 30  # an id that no row has: PyTorch gives the padding's embedding no gradient, even where it is read

# Name: Hugging Face model class, its configuration, whether it takes positions (else padding stands on the right only).
ENCODERS = {
    "bert": ("BertForPreTraining", BERT, True),
    "roberta": ("RobertaForMaskedLM", {**BERT, **ROBERTA}, True),
    "distilbert": ("DistilBertForMaskedLM", DISTILBERT, False),
    "electra": ("ElectraForMaskedLM", {**BERT, "embedding_size": 9}, True),
    "albert": ("AlbertForPreTraining", {**BERT, "embedding_size": 9}, True),
    "modernbert": ("ModernBertForMaskedLM", MODERNBERT, True),
}
SEQ2SEQ = {
    "t5": ("T5ForConditionalGeneration", {**T5, "relative_attention_num_buckets": 8}, False),
    "t5_v1_1": (
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 3},
        False,
    ),
    "bart": ("BartForConditionalGeneration", BART, False),
    "mbart": ("MBartForConditionalGeneration", {**BART, "scale_embedding": True}, False),
    "marian": ("MarianMTModel", {**STATIC, "activation_function": "swish"}, False),
    "pegasus": ("PegasusForConditionalGeneration", {**STATIC, "activation_function": "relu"}, False),
}
TOKENS = {"decoder_start_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
# More of what a checkpoint may say, for the parity tests only.
MORE = {
    "electra_wide": ("ElectraForMaskedLM", {**BERT, "embedding_size": 15}, True),
    "electra_discriminator": ("ElectraForPreTraining", {**BERT, "embedding_size": 9}, True),
    "bert_relu": ("BertForPreTraining", {**BERT, "hidden_act": "relu", "layer_norm_eps": 1e-3}, True),
    "mt5": (
        "MT5ForConditionalGeneration",
        {**T5, "d_kv": 5, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
        False,
    ),
    "bart_scaled": (
        "BartForConditionalGeneration",
        {**BART, "scale_embedding": True, "decoder_layers": 1, "activation_function": "gelu_new"},
        False,
    ),
}
CASES = ENCODERS | SEQ2SEQ


def _rows(length, left):
    """Ids and mask of three rows: a whole one, one padded right, one padded left where the model can tell."""
    random = np.random.default_rng(1)
    input_ids = random.integers(2, PADDING, (3, length))
    mask = np.ones((3, length), np.int64)
    mask[1, length - 4 :] = 0
    if left:
        mask[2, :3] = 0
    return input_ids, mask


def randomized(model_class, config):
    """A model with random parameters, large enough that every one of them shows in the output."""
    import torch

    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:  # sinusoids
                continue
            parameter.normal_(0, 0.4)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
    return model


def as_arrays(model, batch, loss, logits):
    """Everything a golden file holds, as numpy arrays; ``loss.backward()`` was called."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}  # a tied head once
    unused = [name for name, parameter in parameters.items() if parameter.grad is None]
    assert not unused, unused
    return {
        "config": np.array(json.dumps(model.config.to_dict(), sort_keys=True, default=str)),
        "loss": loss.detach().numpy(),
        "logits": logits.detach().numpy(),
        **{f"batch/{name}": array for name, array in batch.items()},
        **{f"state/{name}": parameter.detach().numpy() for name, parameter in parameters.items()},
        **{f"gradient/{name}": parameter.grad.numpy() for name, parameter in parameters.items()},
    }


def hf_model(name, **changes):
    """A PyTorch model with random parameters; ``changes`` to the case's configuration."""
    import torch
    import transformers

    class_name, keys, _ = (CASES | MORE)[name]
    keys = keys | changes
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(
        **{"pad_token_id": PADDING, **keys}, attn_implementation="eager", bos_token_id=1, eos_token_id=1, **TOKENS
    )
    model = randomized(model_class, config)
    if keys.get("tie_word_embeddings") is False:
        # transformers 5 ties the head of every T5 and unties it in loading, where the checkpoint has both.
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.4)
    if class_name == "MarianMTModel":
        # A buffer that training has filled; with a gradient here, to compare it.
        model.final_logits_bias = torch.nn.Parameter(torch.randn_like(model.final_logits_bias))
    return model


def make(name):
    """The contents of one golden file, by PyTorch."""
    import torch

    class_name, keys, takes_positions = (CASES | MORE)[name]
    model = hf_model(name)
    config = model.config
    input_ids, mask = _rows(11, takes_positions)
    batch = {"input_ids": input_ids, "attention_mask": mask}
    extra = {}
    if name in SEQ2SEQ or "decoder_layers" in keys or "d_kv" in keys:
        targets, real = _rows(8, False)
        labels = np.where(real == 1, targets, -100)
        batch["decoder_input_ids"] = np.concatenate([np.ones((3, 1), np.int64), targets[:, :-1]], axis=1)
    else:
        labels = np.where((mask == 1) & (np.arange(11) % 3 == 0), input_ids[:, ::-1], -100)
        if takes_positions:
            offset = 2 if "Roberta" in class_name else 0
            extra["position_ids"] = torch.tensor(np.maximum(np.cumsum(mask, axis=1) - 1, 0) * mask + offset)
        if "type_vocab_size" not in keys and getattr(config, "type_vocab_size", 0):
            batch["token_type_ids"] = (np.arange(11) >= 5).astype(np.int64) * mask
    output = model(**{k: torch.tensor(v) for k, v in batch.items()}, **extra)
    logits = next(getattr(output, k) for k in ("logits", "prediction_logits") if getattr(output, k, None) is not None)
    if logits.ndim == 2:  # a discriminator: one score a token
        loss = (torch.sin(logits) * torch.tensor(mask)).sum()
    else:
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(labels).flatten())
    for key in ("seq_relationship_logits", "sop_logits"):
        if getattr(output, key, None) is not None:
            # transformers pools the first place, which is padding in the last row.
            batch["pair_labels"] = np.array([1, 0, -100])
            loss = loss + torch.nn.functional.cross_entropy(getattr(output, key), torch.tensor(batch["pair_labels"]))
    loss.backward()
    return as_arrays(model, {**batch, "labels": labels}, loss, logits)
