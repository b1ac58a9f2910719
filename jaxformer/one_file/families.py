"""What files say of families and activations: names, papers and formulas."""

from typing import Any

T5 = 'Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer"'
PAPERS = {
    "gpt2": ("GPT-2", 'Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"'),
    "gpt1": ("GPT", 'Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training"'),
    "gpt_neo": ("GPT-Neo", 'Black et al. 2021, "GPT-Neo: Large Scale Autoregressive Language Modeling"'),
    "gpt_neox": ("GPT-NeoX", 'Black et al. 2022, "GPT-NeoX-20B: An Open-Source Autoregressive Language Model"'),
    "opt": ("OPT", 'Zhang et al. 2022, "OPT: Open Pre-trained Transformer Language Models"'),
    "bloom": ("BLOOM", 'BigScience 2022, "BLOOM: A 176B-Parameter Open-Access Multilingual Language Model"'),
    "llama": ("LLaMA", 'Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models"'),
    "mistral": ("Mistral", 'Jiang et al. 2023, "Mistral 7B"'),
    "qwen2": ("Qwen2", 'Yang et al. 2024, "Qwen2 Technical Report"'),
    "qwen3": ("Qwen3", 'Yang et al. 2025, "Qwen3 Technical Report"'),
    "phi3": ("Phi-3", 'Abdin et al. 2024, "Phi-3 Technical Report"'),
    "gemma": ("Gemma", 'Gemma Team 2024, "Gemma: Open Models Based on Gemini Research and Technology"'),
    "bert": ("BERT", 'Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers"'),
    "roberta": ("RoBERTa", 'Liu et al. 2019, "RoBERTa: A Robustly Optimized BERT Pretraining Approach"'),
    "xlm_roberta": ("XLM-R", 'Conneau et al. 2020, "Unsupervised Cross-lingual Representation Learning at Scale"'),
    "roberta_prelayernorm": ("RoBERTa, pre-norm", 'Ott et al. 2019, "fairseq: A Fast, Extensible Toolkit"'),
    "distilbert": ("DistilBERT", 'Sanh et al. 2019, "DistilBERT, a distilled version of BERT"'),
    "albert": ("ALBERT", 'Lan et al. 2020, "ALBERT: A Lite BERT for Self-supervised Learning"'),
    "modernbert": ("ModernBERT", 'Warner et al. 2024, "Smarter, Better, Faster, Longer"'),
    "electra": ("ELECTRA", 'Clark et al. 2020, "ELECTRA: Pre-training Text Encoders as Discriminators"'),
    "t5": ("T5", T5),
    "t5_v1_1": ("T5 1.1", T5),
    "flan_t5": ("Flan-T5", 'Chung et al. 2022, "Scaling Instruction-Finetuned Language Models"'),
    "mt5": ("mT5", 'Xue et al. 2021, "mT5: A Massively Multilingual Pre-trained Text-to-Text Transformer"'),
    "byt5": ("ByT5", 'Xue et al. 2022, "ByT5: Towards a Token-Free Future"'),
    "bart": ("BART", 'Lewis et al. 2020, "BART: Denoising Sequence-to-Sequence Pre-training"'),
    "mbart": ("mBART", 'Liu et al. 2020, "Multilingual Denoising Pre-training for Neural Machine Translation"'),
    "blenderbot": ("Blenderbot", 'Roller et al. 2021, "Recipes for Building an Open-Domain Chatbot"'),
    "marian": ("Marian", 'Tiedemann, Thottingal 2020, "OPUS-MT: Building open translation services for the World"'),
    "pegasus": ("PEGASUS", 'Zhang et al. 2020, "PEGASUS: Pre-training with Extracted Gap-sentences"'),
    "transformer": ("The Transformer", 'Vaswani et al. 2017, "Attention Is All You Need"'),
}
ACTIVATIONS = {
    "gelu": ("jax.nn.gelu({}, approximate=False)", "GELU: Hendrycks, Gimpel 2016"),
    "gelu_tanh": ("jax.nn.gelu({})", "GELU by tanh: Hendrycks, Gimpel 2016"),
    "silu": ("jax.nn.silu({})", "SiLU: Elfwing et al. 2017"),
    "gelu_sigmoid": (
        "(lambda x: x * jax.nn.sigmoid(1.702 * x))({})",
        "GELU by the logistic function: Hendrycks, Gimpel 2016",
    ),
    "relu": ("jax.nn.relu({})", "ReLU: Nair, Hinton 2010"),
    "tanh": ("jnp.tanh({})", "act is tanh"),
}
# By class of the model: what it is, and what ``forward`` returns.
KINDS = {
    "Decoder": ("a decoder", "Logits of the next token at every place, ``[B, T, V]``."),
    "EncoderDecoder": ("an encoder-decoder", "Logits of the next token at every place of the target, ``[B, T, V]``."),
    "MaskedLM": ("an encoder that fills in masked tokens", "Logits of the token at every place, ``[B, T, V]``."),
    "Discriminator": ("a discriminator", "Scores of all tokens, above 0 where one was probably replaced, ``[B, T]``."),
    "SequenceClassifier": ("a classifier of texts", "Scores of the classes of a text, ``[B, C]``."),
    "TokenClassifier": ("a classifier of tokens", "Scores of the classes of every token, ``[B, T, C]``."),
    "QuestionAnswering": ("a model of answers", "Scores of each token as first and as last one, ``[B, T]`` twice."),
    "Encoder": ("an encoder", "Hidden states of all tokens, ``[B, T, D]``."),
    "Body": ("a model without a head", "Hidden states of all tokens, ``[B, T, D]``."),
}
POOLED = {"first": "that of the first token", "last": "that of the last token", "mean": "the mean of its tokens"}
RESIDUALS = {
    "pre": "Pre-norm, the norm comes first: Xiong et al. 2020.",
    "post": "Post-norm, it comes last: Vaswani et al. 2017.",
}
# Switches that the files have for these values only; families with others have no file.
WRITTEN: dict[str, tuple[Any, ...]] = {
    "norm_place": tuple(RESIDUALS),
    "project_context": (True,),
    "context_size": (None,),
    "norm_scale": (True,),
    "qk_norm": (False, True),
    "qkv_clip": (None,),
    "shared_norm": (False,),
    "sinusoidal_inclusive": (False,),
    "relative_per_layer": (False,),
    "embedding_conv_size": (None,),
    "encoder_window": (None,),
    "sparse_block_size": (None,),
    "classifier_pooler": (None,),
    "span_feed_forward": (False,),
    "summary_size": (None,),
    "rotary_adjacent": (False,),
    "global_first": (0,),
    "score_width": (None,),
    "score_softcap": (None,),
    "logits_softcap": (None,),
    "embedding_norm": (False, True),
    "pooled_state": tuple(POOLED),
    "decoder_embedding_norm": (None,),
    "positions": ("learned", "sinusoidal", "rotary", "relative", "alibi", "none"),
}
