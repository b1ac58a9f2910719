"""One training step of the same GPT-2 in jaxformer and in PyTorch, on the CPU of this machine.

    python benchmarks/train_step.py                     # jaxformer alone
    pip install -e ".[benchmark]" && python benchmarks/train_step.py --compare torch [--markdown]

A step is forward pass, loss, backward pass, clipping to global norm 1 and AdamW (learning rate 1e-3, betas 0.9 and
0.99, decay 0.1 on the matrices of the layers), float32, no dropout. jaxformer runs the step of its training loop. The
peers are Hugging Face ``GPT2LMHeadModel`` and a plain GPT written for speed, as it comes and with ``torch.compile``.
jaxformer tells the C library to keep freed memory; a peer is tried both ways and takes part with the faster one.

All start from the same weights and batch, and their losses over the first steps must agree before anything is timed.
Each runs in a process of its own; they take turns, so that a slow minute of the machine falls on all of them.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import _compare
import numpy as np
from _compare import JAXFORMER, TINY, Benchmark, Shape, Step
from _steps import Arrays, jaxformer_step, torch_step

SHAPES = {
    TINY: Shape(2, 16, 2, 8, 2, 11),
    "small": Shape(4, 128, 4, 64, 12, 65),
    "medium": Shape(6, 384, 6, 256, 8, 65),
    "large": Shape(12, 768, 12, 128, 4, 32_000),
}
PEERS = {
    "compiled": "plain GPT, torch.compile",
    "eager": "plain GPT, PyTorch eager",
    "hugging_face": "Hugging Face, PyTorch eager",
}


def make_batch(shape: Shape) -> Arrays:
    """Random tokens, each row one longer than the inputs, so that each has a label."""
    tokens = np.random.default_rng(0).integers(shape.vocabulary, size=(shape.batch, shape.length + 1), dtype=np.int32)
    return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:].copy()}


def plain_gpt(shape: Shape) -> Any:
    """GPT-2 as short as PyTorch allows, for speed: one product for query, key and value, fused attention, tied head.

    Its parts have Hugging Face's names, so that both take the same weights.
    """
    import torch
    from torch import nn

    D = shape.width

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_attn, self.c_proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

        def forward(self, x: Any) -> Any:
            B, T, _ = x.shape
            heads = self.c_attn(x).view(B, T, 3, shape.heads, D // shape.heads)
            query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
            y = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            return self.c_proj(y.transpose(1, 2).reshape(B, T, D))

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_fc, self.c_proj = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

        def forward(self, x: Any) -> Any:
            return self.c_proj(nn.functional.gelu(self.c_fc(x), approximate="tanh"))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.attn, self.ln_2, self.mlp = nn.LayerNorm(D), Attention(), nn.LayerNorm(D), FeedForward()

        def forward(self, x: Any) -> Any:
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(shape.vocabulary, D), nn.Embedding(shape.length, D)
            self.h, self.ln_f = nn.ModuleList(Block() for _ in range(shape.layers)), nn.LayerNorm(D)

        def forward(self, ids: Any) -> Any:
            x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
            for block in self.h:
                x = block(x)
            return nn.functional.linear(self.ln_f(x), self.wte.weight)

    return GPT()


def hugging_face_gpt(shape: Shape) -> Any:
    """``GPT2LMHeadModel`` without dropout; its GELU by tanh is PyTorch's own, the faster of the two it offers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary,
            n_positions=shape.length,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )
    )


def build(kind: str, shape: Shape, weights: dict[str, Any]) -> tuple[Any, Callable[..., Any]]:
    """PyTorch's model with the weights given, and its mean loss."""
    from torch import nn

    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    if kind == "hugging_face":
        model = hugging_face_gpt(shape)
        model.transformer.load_state_dict(weights)
    else:
        model = plain_gpt(shape)
        linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        model.load_state_dict({name: tensor.T if name in linear else tensor for name, tensor in weights.items()})

    def loss_of(input_ids: Any, labels: Any) -> Any:
        logits = model(input_ids).logits if kind == "hugging_face" else model(input_ids)
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    return model, loss_of


def make_step(kind: str, shape: Shape, weights: Path) -> Step:
    """jaxformer's step or a peer's."""
    batch = make_batch(shape)
    if kind != JAXFORMER:
        return torch_step(partial(build, kind, shape), batch, weights, compiled=kind == "compiled")
    model = {"type": "gpt2", "num_layers": shape.layers, "hidden_size": shape.width, "num_heads": shape.heads}
    return jaxformer_step({**model, "max_length": shape.length, "vocab_size": shape.vocabulary}, batch, weights)


def main() -> int:
    """The command line."""
    return _compare.main(Benchmark(__file__, "One training step, float32", SHAPES, PEERS, make_step))


if __name__ == "__main__":
    sys.exit(main())
