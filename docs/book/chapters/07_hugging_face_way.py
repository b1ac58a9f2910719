# %% [markdown]
# title

# %% [markdown]
# dataset

# %%
import itertools
import json
import tempfile
from pathlib import Path

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import jaxformer

things = {"film": "영화는", "book": "책은", "song": "노래는", "meal": "식사는", "journey": "여행은", "game": "경기는"}
degrees = {"really": "정말", "rather": "꽤", "simply": "그냥", "truly": "참으로"}
words = {
    "positive": {"good": "좋", "funny": "재미있", "lovely": "훌륭하", "charming": "멋있"},
    "negative": {"bad": "나쁘", "boring": "지루하", "dull": "재미없", "silly": "우습"},
}
opposite = {"positive": "negative", "negative": "positive"}
rows = []
for thing, degree, label in itertools.product(things, degrees, words):
    for english, korean in words[label].items():
        rows += [
            {"text": f"the {thing} was {degree} {english}", "label": label},
            {"text": f"the {thing} was {degree} not {english}", "label": opposite[label]},
            {"text": f"{things[thing]} {degrees[degree]} {korean}고 또 {korean}다", "label": label},
            {"text": f"{things[thing]} {degrees[degree]} {korean}지 않다", "label": opposite[label]},
        ]
parts = datasets.Dataset.from_list(rows).train_test_split(test_size=0.25, seed=0)
print(parts)
for row in parts["train"].select(range(4)):
    print(row)

# %% [markdown]
# tokenizer

# %%
from jaxformer.tokenizers import TokenizerConfig, give_frame, train_tokenizer

tokenizer = train_tokenizer(TokenizerConfig(type="wordpiece", vocab_size=800), parts["train"]["text"])
give_frame(tokenizer, "[CLS]", "[SEP]")
sentence = "the film was not good"
print(tokenizer.convert_ids_to_tokens(tokenizer(sentence)["input_ids"]))

batch = tokenizer([sentence, "the book"], padding=True, return_tensors="np")
print(batch["input_ids"])
print(batch["attention_mask"])

# %% [markdown]
# trainer

# %%
from jaxformer.training.console import Display
from jaxformer.training.loop import train
from jaxformer.training.run import prepare
from jaxformer.training.sources import resolve_config

folder = Path(tempfile.mkdtemp())
for name, part in parts.items():
    part.to_json(folder / f"{name}.jsonl", force_ascii=False)
tokenizer.save_pretrained(folder / "tokenizer")

sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "intermediate_size": 128, "max_length": 64}
sizes |= {"dropout": 0.0, "attention_dropout": 0.0}
keys = {
    "output_dir": str(folder / "run"),
    "model": {"type": "bert", **sizes},
    "tokenizer": {"type": "pretrained", "path": str(folder / "tokenizer")},
    "data": {"path": str(folder / "train.jsonl"), "validation_path": str(folder / "test.jsonl")},
    "task": {"type": "sequence_classification"},
    "optimizer": {"learning_rate": 1e-3},
    "training": {"steps": 400, "batch_size": 32, "sequence_length": 64, "log_every": 100},
    "logging": {"report": False, "tensorboard": False},
}
keys["data"]["cache_dir"] = str(folder / "cache")
quiet = Display(Console(quiet=True))
result = train(prepare(resolve_config(keys, "this chapter"), quiet), quiet)
print(f"step {result.step}: loss {result.loss:.3f}, accuracy {result.report.metrics['accuracy']:.3f}")
print("the run's folder:", *sorted(path.name for path in (folder / "run").glob("[a-z]*")))

# %% [markdown]
# by_hand

# %%
from flax.linen import unbox

from jaxformer.families import model_config
from jaxformer.models import TransformerConfig
from jaxformer.models.heads import SequenceClassifier

labels = sorted(words)
config = TransformerConfig(**model_config({"type": "bert", "vocab_size": len(tokenizer), **sizes}))
model = SequenceClassifier(config, num_labels=len(labels), labels=tuple(labels))


def arrays(part):
    encoded = tokenizer(list(part["text"]), padding=True, return_tensors="np")
    return dict(encoded), np.array([labels.index(label) for label in part["label"]])


inputs, answers = arrays(parts["train"])
test_inputs, test_answers = arrays(parts["test"])
params = unbox(model.init(jax.random.key(0), **{name: array[:1] for name, array in inputs.items()})["params"])
optimizer = optax.adamw(1e-3)
state = optimizer.init(params)


@jax.jit
def step(params, state, inputs, answers):
    def loss(params):
        logits = model.apply({"params": params}, **inputs).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


draw = np.random.default_rng(0)
for _ in range(400):
    chosen = draw.integers(0, len(answers), 32)
    params, state, value = step(params, state, {name: array[chosen] for name, array in inputs.items()}, answers[chosen])
test_logits = model.apply({"params": params}, **test_inputs).logits
accuracy = (test_logits.argmax(axis=-1) == test_answers).mean()
print(f"loss of the last batch {value:.3f}, accuracy {accuracy:.3f} on the {len(test_answers)} texts held out")

# %% [markdown]
# save

# %%
jaxformer.save_pretrained(folder / "saved", model, params, tokenizer)
print(*sorted(path.name for path in (folder / "saved").iterdir()))
written = json.loads((folder / "saved" / "config.json").read_text())
print({key: written[key] for key in ("model_type", "architectures", "hidden_size", "id2label")})

reopened, reopened_params = jaxformer.AutoModelForSequenceClassification.from_pretrained(folder / "saved")
same_tokenizer = jaxformer.AutoTokenizer.from_pretrained(folder / "saved")
again = reopened.apply({"params": reopened_params}, **test_inputs).logits
assert jnp.array_equal(again, test_logits)
assert same_tokenizer(sentence)["input_ids"] == tokenizer(sentence)["input_ids"]
print("largest difference of the logits", jnp.abs(again - test_logits).max())

# %% [markdown]
# pipeline

# %%
texts = [
    "the film was truly not good",
    "the song was really lovely",
    "영화는 정말 지루하지 않다",
    "책은 꽤 나쁘고 또 나쁘다",
    "the film was not good",
]
batch = same_tokenizer(texts, padding=True, return_tensors="np")
probabilities = jax.nn.softmax(reopened.apply({"params": reopened_params}, **batch).logits)
by_hand = [(reopened.labels[row.argmax()], float(row.max())) for row in probabilities]

classify = jaxformer.pipeline("text-classification", model=str(folder / "saved"))
for text, (label, score), answer in zip(texts, by_hand, classify(texts)):
    assert answer["label"] == label and np.isclose(answer["score"], score, atol=1e-5)
    print(f"{label} {score:.3f}: {text}")

# %%
from_run = jaxformer.pipeline("text-classification", model=str(folder / "run"))
print("the trainer's model:", *(f"{answer['label']} {answer['score']:.3f}" for answer in from_run(texts)))

# %% [markdown]
# summary
