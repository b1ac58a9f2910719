# %% [markdown]
# title

# %%
import json
import random
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import jaxformer
from jaxformer import functional as F
from jaxformer.training.console import Display
from jaxformer.training.loop import train
from jaxformer.training.run import prepare
from jaxformer.training.sources import resolve_config

things = ["film", "book", "song", "meal", "journey", "game", "play", "city", "hotel", "garden"]
degrees = ["really", "rather", "simply", "truly"]
nice, nasty = ["good", "funny", "lovely", "charming"], ["bad", "boring", "dull", "silly"]
draw = random.Random(0)


def clause(thing):
    return f"the {thing} was {draw.choice(degrees)} {draw.choice(nice + nasty)}"


def review(thing):
    clauses = [clause(thing) for _ in range(draw.randint(1, 3))]
    return " and ".join(clauses) + "."


def question(thing):
    return draw.choice(["How was the {}?", "Tell me about the {}.", "Did you like the {}?"]).format(thing)


def passage():
    return " ".join(draw.choice([review, question])(draw.choice(things)) for _ in range(8))


folder = Path(tempfile.mkdtemp())


def write(name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


texts = write("texts.jsonl", [{"text": passage()} for _ in range(600)])
print(passage())

# %% [markdown]
# base

# %%
quiet = Display(Console(quiet=True))
gpt = {"type": "gpt2", "hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_length": 128, "dropout": 0.0}


def run(name, task, data, steps, model, **keys):
    keys = {
        "output_dir": str(folder / name),
        "model": model,
        "task": task,
        "data": {"path": data, "validation_fraction": 0.1, "cache_dir": str(folder / "cache")},
        "optimizer": {"learning_rate": 3e-3},
        "training": {"steps": steps, "batch_size": 32, "sequence_length": 128, "log_every": 50, "eval_every": steps},
        "logging": {"report": False, "tensorboard": False},
        "sample": {"max_new_tokens": 0},
        **keys,
    }
    return train(prepare(resolve_config(keys, "this chapter"), quiet), quiet)


base = run("base", {"type": "causal_lm"}, texts, 200, gpt, tokenizer={"type": "bpe", "vocab_size": 480})
print(f"loss on passages it has not seen: {base.loss:.2f} nats a token")

continues = jaxformer.pipeline("text-generation", model=str(folder / "base"))
print(continues("How was the garden?", max_new_tokens=24, do_sample=True, seed=1)[0]["generated_text"])

# %% [markdown]
# template

# %%
tokenizer = jaxformer.load_run(folder / "base").tokenizer
tokenizer.split_special_tokens = False  # marks in the text below are the template's, not a stranger's
tokenizer.chat_template = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}Q: {{ message.content }}\nA:"
    "{% else %}{% generation %} {{ message.content }}{{ eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
)
dialogue = [{"role": "user", "content": "How was the film?"}, {"role": "assistant", "content": "the film was good."}]
by_hand = f"Q: {dialogue[0]['content']}\nA: {dialogue[1]['content']}{tokenizer.eos_token}"
assert by_hand == tokenizer.apply_chat_template(dialogue, tokenize=False)
print(by_hand)

# %% [markdown]
# mask

# %%
encoded = tokenizer.apply_chat_template(dialogue, return_dict=True, return_assistant_tokens_mask=True)
ids, learned = jnp.array(encoded["input_ids"]), jnp.array(encoded["assistant_masks"])
logits = jax.random.normal(jax.random.key(0), (len(ids), len(tokenizer)))

losses = -jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), ids[1:, None], axis=1)[:, 0]
by_hand = (losses * learned[1:]).sum() / learned[1:].sum()

labels = jnp.where(learned == 1, ids, F.IGNORE)[1:]
library = F.cross_entropy(logits[None, :-1], labels[None])
assert jnp.allclose(by_hand, library.total / library.tokens, rtol=1e-6)
print(f"{int(library.tokens)} of {len(labels)} tokens are learned: {tokenizer.decode(ids[1:][labels >= 0])!r}")

# %% [markdown]
# tuning

# %%
asked = [draw.choice(things) for _ in range(1500)]
answered = [
    {"messages": [{"role": "user", "content": question(t)}, {"role": "assistant", "content": review(t)}]} for t in asked
]
instruction = {"type": "instruction", "chat_template": tokenizer.chat_template}
tuned = run("tuned", instruction, write("answered.jsonl", answered), 150, {"pretrained": str(folder / "base")})

questions = [(thing, question(thing)) for thing in things for _ in range(10)]


def answers(model):
    generate = jaxformer.pipeline("text-generation", model=str(folder / model), batch_size=50)
    prompts = [f"Q: {said}\nA:" for _, said in questions]
    options = {"max_new_tokens": 32, "do_sample": True, "seed": 0, "return_full_text": False}
    return [found[0]["generated_text"].strip() for found in generate(prompts, **options)]


for model in ("base", "tuned"):
    found = answers(model)
    about = np.mean([text.startswith(f"the {thing} was") for (thing, _), text in zip(questions, found)])
    print(f"{model}: {about:.0%} of the answers are about what was asked; {questions[0][1]} {found[0]}")

# %% [markdown]
# score

# %%
from flax.linen import unbox

from jaxformer.models.heads import SequenceClassifier

opened = jaxformer.load_run(folder / "tuned")
scorer = SequenceClassifier(opened.model.config, num_labels=1)
tokenizer.pad_token = tokenizer.eos_token
batch = tokenizer(["the film was good.", "it was really rather dull."], padding=True, return_tensors="np")
params = unbox(scorer.init(jax.random.key(0), **batch)["params"])

out = scorer.apply({"params": params}, **batch)
last = batch["attention_mask"].sum(axis=1) - 1
by_hand = out.last_hidden_state[jnp.arange(2), last] @ params["classifier"]["kernel"]
assert jnp.allclose(by_hand, out.logits, atol=1e-5)
print("scores before any training:", out.logits[:, 0])

# %% [markdown]
# bradley_terry

# %%
chosen, rejected = jnp.array([2.0, 0.5, -1.0]), jnp.array([0.0, 0.5, 1.0])
by_hand = -jnp.log(1 / (1 + jnp.exp(rejected - chosen)))
assert jnp.allclose(by_hand, F.bradley_terry_loss(chosen, rejected), atol=1e-6)
assert jnp.allclose(by_hand, optax.sigmoid_binary_cross_entropy(chosen - rejected, jnp.ones(3)), atol=1e-6)
slope = jax.grad(lambda chosen: F.bradley_terry_loss(chosen, rejected).sum())(chosen)
for difference, loss, pull in zip(chosen - rejected, by_hand, slope):
    print(f"the preferred answer is {difference:+.1f} better: loss {loss:.2f}, its score is pulled by {-pull:.2f}")

# %% [markdown]
# reward_model


# %%
def niceness(text):
    words = text.replace(".", "").split()
    return sum(word in nice for word in words) - sum(word in nasty for word in words)


def pair():
    thing = draw.choice(things)
    while niceness(first := review(thing)) == niceness(second := review(thing)):
        pass
    if niceness(first) < niceness(second):
        first, second = second, first
    asked = {"role": "user", "content": question(thing)}
    sides = {"chosen": first, "rejected": second}
    return {name: [asked, {"role": "assistant", "content": text}] for name, text in sides.items()}


pairs = [pair() for _ in range(1500)]
reward = {"type": "reward", "chat_template": tokenizer.chat_template}
start = {"pretrained": str(folder / "tuned")}
reward = run("reward", reward, write("pairs.jsonl", pairs), 150, start, optimizer={"learning_rate": 1e-3})
print(f"the preferred one of two unseen answers has the higher score: {reward.report.metrics['pair_accuracy']:.0%}")

# %% [markdown]
# holes

# %%
judge = jaxformer.load_run(folder / "reward")
tokenizer = judge.tokenizer
tokenizer.split_special_tokens = False


def scores(prompt, texts):
    rows = [tokenizer(f"Q: {prompt}\nA: {text}{tokenizer.eos_token}")["input_ids"] for text in texts]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="np")
    return judge.model.apply({"params": judge.params}, **batch).logits[:, 0]


tried = [
    "the film was really dull.",
    "the film was really good.",
    "the film was really good and the film was truly lovely.",
    "the film was really good and the film was truly lovely and the film was simply funny.",
    "the song was really good and the song was truly lovely and the song was simply funny.",
    "lovely lovely lovely lovely lovely lovely lovely.",
]
for text, score in zip(tried, scores("How was the film?", tried)):
    print(f"{score:6.2f}  {text}")

# %% [markdown]
# summary
