"""Adapters that the ``peft`` library wrote, the logits it computes with them, and the gradients of their factors.

    pip install -e ".[test,parity]" && python -m tests.golden.adapters

The models are those of ``tests.golden.heads``, whose weights anyone can make again.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.golden import heads

FILE = Path(__file__).parent / "adapters.npz"
# Name: case of ``heads``, modules of theirs that are adapted, further settings.
CASES = {
    "gpt2": ("gpt2/causal_lm", ["c_attn", "c_fc"], {"rank_pattern": {"c_fc": 3}}),
    "llama_dora": ("llama/causal_lm", ["q_proj", "o_proj", "down_proj"], {"use_dora": True}),
    "bert": ("bert/sequence_classification", ["query", "output.dense"], {"modules_to_save": ["classifier"]}),
    "t5_rslora": ("t5/seq2seq_lm", ["q", "wo"], {"use_rslora": True}),
}


def inputs(kind):
    """One text without padding."""
    text = heads.rows(kind)[0][None]
    return {"input_ids": text, **({"decoder_input_ids": text[:, ::-1].copy()} if kind == "seq2seq_lm" else {})}


def torch_adapted(case, modules, settings):
    """PEFT's model, with factors, lengths and whole modules far from their beginning."""
    import peft
    import torch

    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=modules, init_lora_weights=False, **settings)
    model = peft.get_peft_model(heads.torch_model(case), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name or (parameter.requires_grad and "lora" not in name):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    return model


def outputs(model, kind):
    """Logits, and the gradients of the trained parameters by the sum of their sines, under the names of the file."""
    import torch

    logits = model(**{name: torch.tensor(array) for name, array in inputs(kind).items()}).logits
    torch.sum(torch.sin(logits)).backward()
    gradients = {
        name.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector"): p.grad.numpy()
        for name, p in model.named_parameters()
        if p.grad is not None and "lora" in name
    }
    return logits.detach().numpy(), gradients


def make(name):
    """The files and results of a case, as arrays."""
    from safetensors.numpy import load_file

    case, modules, settings = CASES[name]
    model = torch_adapted(case, modules, settings)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
    logits, gradients = outputs(model, case.split("/")[1])
    return {
        "config": np.array(json.dumps(config, sort_keys=True)),
        "logits": logits,
        **{f"tensor/{key}": array for key, array in tensors.items()},
        **{f"gradient/{key}": array for key, array in gradients.items()},
    }


def load():
    """The golden file, by case."""
    found = {}
    with np.load(FILE) as stored:
        for key in stored.files:
            name, _, rest = key.partition("/")
            found.setdefault(name, {})[rest] = stored[key]
    return found


def write(golden, folder):
    """The files that PEFT wrote."""
    from safetensors.numpy import save_file

    tensors = {key.removeprefix("tensor/"): array for key, array in golden.items() if key.startswith("tensor/")}
    save_file(tensors, Path(folder) / "adapter_model.safetensors")
    (Path(folder) / "adapter_config.json").write_text(str(golden["config"]))


if __name__ == "__main__":
    made = {f"{name}/{key}": array for name in CASES for key, array in make(name).items()}
    np.savez_compressed(FILE, **made)
    print(f"{FILE} {FILE.stat().st_size / 1000:.0f} kB")
