# %% [markdown]
# title

# %%
import json
import random
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import jaxformer
from jaxformer import functional as F
from jaxformer import plot
from jaxformer.training.console import Display
from jaxformer.training.loop import train
from jaxformer.training.metrics import read_records
from jaxformer.training.run import prepare
from jaxformer.training.sources import resolve_config

things = ["film", "book", "song", "meal", "journey", "game", "play", "city", "hotel", "garden"]
degrees = ["really", "rather", "simply", "truly"]
nice, nasty = ["good", "funny", "lovely", "charming"], ["bad", "boring", "dull", "silly"]
draw = random.Random(0)
folder = Path(tempfile.mkdtemp())


def review(thing):
    said = [f"the {thing} was {draw.choice(degrees)} {draw.choice(nice + nasty)}" for _ in range(draw.randint(1, 3))]
    return " " + " and ".join(said) + "."


def niceness(text):
    words = re.findall(r"\w+", text)
    return sum(word in nice for word in words) - sum(word in nasty for word in words)


def pair(thing):
    first, second = sorted((review(thing), review(thing)), key=niceness, reverse=True)
    return {"prompt": f"How was the {thing}?", "chosen": first, "rejected": second}


def write(name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


pairs = [pair(draw.choice(things)) for _ in range(2000)]
preferred = write("pairs.jsonl", [row for row in pairs if niceness(row["chosen"]) > niceness(row["rejected"])])
answered = write("answered.jsonl", [{"prompt": row["prompt"], "completion": row["rejected"]} for row in pairs])
print(json.dumps(pairs[0], indent=1))

# %% [markdown]
# start

# %%
quiet = Display(Console(quiet=True))
tuned, rewarding = str(folder / "tuned"), str(folder / "reward")


def run(name, task, data, steps, model=None, **keys):
    keys = {
        "output_dir": str(folder / name),
        "model": model or {"pretrained": tuned},
        "task": task,
        "data": {"path": data, "validation_fraction": 0.1, "cache_dir": str(folder / "cache")},
        "optimizer": {"learning_rate": 1e-3},
        "training": {"steps": steps, "batch_size": 64, "sequence_length": 64, "log_every": 1, "eval_every": steps},
        "logging": {"report": False, "tensorboard": False},
        "sample": {"max_new_tokens": 0},
        **keys,
    }
    return train(prepare(resolve_config(keys, "this chapter"), quiet), quiet)


gpt = {"type": "gpt2", "hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_length": 64, "dropout": 0.0}
bpe = {"type": "bpe", "vocab_size": 480}
run(
    "tuned",
    {"type": "instruction", "packed": False},
    answered,
    200,
    gpt,
    tokenizer=bpe,
    optimizer={"learning_rate": 3e-3},
)
result = run("reward", {"type": "reward"}, preferred, 100)
print(f"the reward model agrees with the people on {result.report.metrics['pair_accuracy']:.0%} of the unseen pairs")

# %% [markdown]
# judges

# %%
shape = re.compile(rf" (the (\w+) was ({'|'.join(degrees)}) ({'|'.join(nice)})( and (?!\.)|\.$)){{1,3}}")


def people(thing, text):
    """True for an answer that people like: sentences about the thing, all of them nice."""
    return bool(shape.fullmatch(text)) and set(re.findall(r"the (\w+)", text)) == {thing}


opened, judge = jaxformer.load_run(tuned), jaxformer.load_run(rewarding)
tokenizer = judge.tokenizer


def scores(thing, texts):
    rows = [[*tokenizer(f"How was the {thing}?{text}")["input_ids"], tokenizer.eos_token_id] for text in texts]
    batch = tokenizer.pad({"input_ids": rows}, padding="max_length", max_length=64, return_tensors="np")
    return np.array(judge.model.apply({"params": judge.params}, **batch).logits[:, 0])


for text in (" the film was really good.", " the film was really dull.", " good good good good good good."):
    print(f"reward {scores('film', [text])[0]:6.2f}, people {people('film', text):d}: {text}")

# %% [markdown]
# best_of_n

# %%
from jaxformer.generation import GenerationConfig
from jaxformer.generation.best_of_n import choose
from jaxformer.generation.best_of_n import draw as draw_texts

prompts = [tokenizer(f"How was the {thing}?")["input_ids"] for thing in things]
options = GenerationConfig(do_sample=True, max_new_tokens=40)


def drawn(run, n):
    """``n`` texts for each thing."""
    found = draw_texts(run.model, run.params, tokenizer, prompts, range(len(prompts)), n, options, len(prompts))
    return [[text.text for text in texts] for texts in found]


texts = drawn(opened, 16)
rated = np.array([scores(thing, of_thing) for thing, of_thing in zip(things, texts)])  # [10, 16]
for n in (1, 2, 4, 8, 16):
    best = rated[:, :n].argmax(axis=1)
    assert best.tolist() == [choose(row, [True] * n) for row in rated[:, :n].tolist()]
    liked = np.mean([people(thing, texts[i][best[i]]) for i, thing in enumerate(things)])
    print(
        f"best of {n:2}: reward {rated[:, :n].max(axis=1).mean():5.2f}, people like {liked:.0%}, "
        f"KL at most {np.log(n) - (n - 1) / n:.2f} nats"
    )

# %% [markdown]
# ppo_reward

# %%
log_probs = jnp.log(jnp.array([[0.5, 0.9, 0.2, 0.1]]))  # of the tokens of one answer, when it was drawn
reference = jnp.log(jnp.array([[0.5, 0.3, 0.4, 0.1]]))  # of the same tokens under the model before any PPO
mask = jnp.array([[1, 1, 1, 0]])  # the answer has three tokens

kl = (log_probs - reference) * mask
rewards = (-0.1 * kl).at[0, 2].add(1.5)  # the answer's score, 1.5, is the reward of its last token
assert jnp.allclose(rewards, F.token_rewards(jnp.array([1.5]), F.kl_estimates(log_probs, reference), mask, 0.1))
print(rewards)

# %% [markdown]
# ppo_advantage

# %%
values = jnp.array([[0.4, 0.9, 1.2, 0.0]])  # what the value head expects of the rest, before each token

advantages, following = np.zeros(4), 0.0
for t in (2, 1, 0):
    following = advantages[t] = rewards[0, t] + values[0, t + 1] - values[0, t] + 0.95 * following
library, _ = F.generalized_advantages(rewards, values, mask, discount=1.0, decay=0.95)
assert jnp.allclose(advantages, library[0], atol=1e-6)
print(advantages)

# %% [markdown]
# ppo_clip

# %%
new = log_probs + jnp.array([[0.1, 0.4, -0.4, 0.0]])  # after some updates on the same answers

ratio = jnp.exp(new - log_probs)
by_hand = -(jnp.minimum(library * ratio, library * jnp.clip(ratio, 0.8, 1.2)) * mask).sum()
assert jnp.allclose(by_hand, F.ppo_policy_loss(new, log_probs, library, mask, clip=0.2).total, atol=1e-6)
slope = jax.grad(lambda new: F.ppo_policy_loss(new, log_probs, library, mask, clip=0.2).total)(new)
print("ratio:", ratio, "gradient:", slope)

# %% [markdown]
# ppo

# %%
asked = write("asked.jsonl", [{"prompt": row["prompt"]} for row in pairs])


def ppo(name, kl_coefficient, steps=100):
    task = {"type": "ppo", "reward": rewarding, "max_new_tokens": 40, "epochs": 2, "minibatches": 2}
    task["kl_coefficient"] = kl_coefficient
    run(name, task, asked, steps, schedule={"type": "constant"})
    return jaxformer.load_run(folder / name)


policies = {"PPO, KL penalty 0.2": ppo("with", 0.2), "PPO, no KL penalty": ppo("without", 0.0)}
curves = {}
for name, run_folder in zip(policies, ("with", "without")):
    curves[name] = [r for r in read_records(folder / run_folder / "metrics.jsonl") if r["split"] == "train"]
plot.learning_curves(curves, key="score", title="Reward of the answers drawn in each step")

# %% [markdown]
# hacking

# %%


def show(name, policy):
    texts = drawn(policy, 16)
    reward = np.mean([scores(thing, of_thing) for thing, of_thing in zip(things, texts)])
    liked = np.mean([people(thing, text) for thing, of_thing in zip(things, texts) for text in of_thing])
    print(f"{name}: reward {reward:.2f}, people like {liked:.0%}")
    for text in texts[0][:2]:
        print("   ", text[:110])


show("before", opened)
for name, policy in policies.items():
    show(name, policy)

# %% [markdown]
# dpo

# %%
policy_chosen, policy_rejected = jnp.array([-9.0, -12.0]), jnp.array([-11.0, -11.0])  # log-probabilities of answers
reference_chosen, reference_rejected = jnp.array([-10.0, -12.5]), jnp.array([-10.0, -12.0])

log_ratios = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
by_hand = -jnp.log(1 / (1 + jnp.exp(-0.1 * log_ratios)))
chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
assert jnp.allclose(by_hand, F.dpo_loss(chosen, rejected, beta=0.1), atol=1e-6)
assert jnp.allclose(by_hand, F.bradley_terry_loss(0.1 * chosen, 0.1 * rejected), atol=1e-6)
print(by_hand)

# %%
result = run("dpo", {"type": "dpo", "beta": 0.1}, preferred, 100, optimizer={"learning_rate": 3e-4})
show("DPO", jaxformer.load_run(folder / "dpo"))
last = [record for record in read_records(folder / "dpo" / "metrics.jsonl") if record["split"] == "eval"][-1]
for side in ("chosen", "rejected"):
    print(f"log-probability of the {side} answers, after less before: {last[f'{side}_reward'] / 0.1:+.1f} nats")

# %% [markdown]
# orpo

# %%
run("orpo", {"type": "dpo", "loss": "orpo", "beta": 0.5}, preferred, 100, optimizer={"learning_rate": 3e-4})
show("ORPO", jaxformer.load_run(folder / "orpo"))

# %% [markdown]
# summary
