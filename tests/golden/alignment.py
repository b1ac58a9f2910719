"""Losses of alignment as TRL computes them on random log-probabilities, masks and scores.

    pip install -e ".[test,parity]" && python -m tests.golden.alignment     # preference pairs, GRPO, RLOO, distillation
    pip install "trl==0.11.4" "transformers==4.45.2" torch && python -m tests.golden.alignment     # PPO

TRL 1 has no PPO; the last release with its losses as methods is 0.11. Whichever is installed writes its own file. What
is run is TRL's own code: the methods of its trainers, on an object that has the few attributes they read, and a model
that returns the log-probabilities drawn here.
"""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace as Names

import numpy as np

FOLDER = Path(__file__).parent
FILE, PPO_FILE = FOLDER / "alignment.npz", FOLDER / "ppo.npz"
B, T, V, GROUP = 6, 7, 5, 3

# Name of ours: loss_type of theirs, beta, label_smoothing.
PAIR_LOSSES = {
    "sigmoid": ("sigmoid", 0.1, 0.0),
    "hinge": ("hinge", 0.3, 0.0),
    "ipo": ("ipo", 0.2, 0.0),
    "robust": ("robust", 0.5, 0.2),
    # Of a single pair aot_unpaired sorts nothing, and is the conservative loss, which has no name of its own any more.
    "cdpo": ("aot_unpaired", 0.5, 0.2),
}


def inputs():
    """All that is drawn: float64 arrays, a response a row, and masks with runs of ones of different lengths."""
    random = np.random.default_rng(11)

    def tokens():
        return -random.exponential(1.0, (B, T))

    mask = np.zeros((2, B, T), int)
    for side in range(2):
        for row in range(B):
            start, stop = int(random.integers(0, 3)), int(random.integers(4, T + 1))
            mask[side, row, start:stop] = 1
    return {
        "mask": mask,
        "policy": np.stack([tokens(), tokens()]),
        "reference": np.stack([tokens(), tokens()]),
        "scores": random.normal(0, 2, (2, B)),
        "margin": random.uniform(0, 2, B),
        "desirable": np.array([1, 0, 1, 1, 0, 0]),
        "kl": random.normal(0.5, 1, (2, B)),
        "old": np.stack([tokens(), tokens()]) * 0.2,
        "values": random.normal(0, 1, (3, B, T)),
        "advantages": random.normal(0, 1, (B, T)),
        "rewards": random.normal(0, 3, B),
        "student": random.normal(0, 2, (B, T, V)),
        "teacher": random.normal(0, 2, (B, T, V)),
    }


def _same(x, **_):
    return x


def _accelerator():
    same = {"gather": _same, "gather_for_metrics": _same, "reduce": _same, "unwrap_model": _same}
    return Names(device="cpu", num_processes=1, sync_gradients=False, **same)


def _trainer(**attributes):
    fixed = {"_metrics": {"eval": defaultdict(list)}, "_total_train_tokens": 0, "_tp_size": 1}
    return Names(accelerator=_accelerator(), model=Names(training=False), aux_loss_enabled=False, **fixed, **attributes)


def _with_gradient(loss, *arrays):
    """The loss and its gradients, as NumPy."""
    loss.backward()
    return [loss.detach().numpy(), *(array.grad.numpy() for array in arrays)]


def _tensors(*arrays):
    import torch

    return [torch.tensor(array, requires_grad=True) for array in arrays]


def pair_losses():
    """Each loss a pair, and the gradient of their sum by each token's log-probability, ``[2, B, T]``."""
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer

    drawn, found = inputs(), {}
    for name, (loss_type, beta, smoothing) in PAIR_LOSSES.items():
        trainer = _trainer(
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=[loss_type],
            loss_weights=[1.0],
            beta=beta,
            label_smoothing=smoothing,
            use_weighting=False,
        )
        losses, gradients = [], []
        for row in range(B):
            mask = torch.tensor(drawn["mask"][:, row])
            (log_probs,) = _tensors(drawn["policy"][:, row])
            zeros = torch.zeros(2, T)
            # The model gives 0 where there is no label.
            output = Names(log_probs=log_probs * mask, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
            reference = torch.tensor((drawn["reference"][:, row] * drawn["mask"][:, row]).sum(-1))
            batch = {
                "input_ids": torch.zeros(2, T + 1, dtype=torch.long),
                "attention_mask": torch.ones(2, T + 1),
                "completion_mask": torch.nn.functional.pad(mask, (1, 0)),
                "ref_chosen_logps": reference[:1],
                "ref_rejected_logps": reference[1:],
            }
            loss = DPOTrainer._compute_loss(trainer, lambda output=output, **_: output, batch, False)
            value, gradient = _with_gradient(loss, log_probs)
            losses.append(value)
            gradients.append(gradient)
        found[f"{name}/loss"], found[f"{name}/gradient"] = np.array(losses), np.stack(gradients, axis=1)
    return found


def reference_free():
    """ORPO's odds ratio and SimPO of mean log-probabilities; values a pair, gradients of their sums ``[2, B]``."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    drawn = inputs()
    means = (drawn["policy"] * drawn["mask"]).sum(-1) / drawn["mask"].sum(-1)
    orpo = _tensors(*means)
    losses = -ORPOTrainer.odds_ratio_loss(Names(beta=1.0, accelerator=_accelerator()), *orpo)[0]
    found = {"orpo/loss": losses.detach().numpy()}
    found["orpo/gradient"] = np.stack(_with_gradient(losses.sum(), *orpo)[1:])
    simpo = _tensors(*means)
    settings = {"alpha": 0.0, "loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "label_smoothing": 0.0}
    losses = CPOTrainer.cpo_loss(Names(accelerator=_accelerator(), **settings), *simpo)[0]
    found["simpo/loss"] = losses.detach().numpy()
    found["simpo/gradient"] = np.stack(_with_gradient(losses.sum(), *simpo)[1:])
    return found


def kto():
    """The mean loss and its gradient by each token's log-probability; the reference point."""
    import torch
    from trl.trainer.kto_trainer import KTOTrainer

    drawn, found = inputs(), {}
    mask = drawn["mask"][0]
    for name, sign in (("kto", 1.0), ("kto_below_zero", -1.0)):
        trainer = _trainer(
            precompute_ref_logps=True,
            calculate_KL=True,
            loss_type="kto",
            beta=0.3,
            desirable_weight=1.3,
            undesirable_weight=0.8,
            _compute_kl_logps=lambda *_, sign=sign: torch.tensor(drawn["kl"][0] + sign * 1.5),
        )
        (log_probs,) = _tensors(drawn["policy"][0])
        zeros = torch.zeros(B, T)
        output = Names(log_probs=log_probs * torch.tensor(mask), entropy=zeros, mean_logits=zeros)
        batch = {
            "input_ids": torch.zeros(B, T + 1, dtype=torch.long),
            "attention_mask": torch.ones(B, T + 1),
            "completion_mask": torch.nn.functional.pad(torch.tensor(mask), (1, 0)),
            "label": torch.tensor(drawn["desirable"]),
            "ref_logps": torch.tensor((drawn["reference"][0] * mask).sum(-1)),
            "ref_KL_logps": torch.tensor(drawn["kl"][1]),
        }
        loss = KTOTrainer._compute_loss(trainer, lambda output=output, **_: output, batch, False)
        found[f"{name}/loss"], found[f"{name}/gradient"] = _with_gradient(loss, log_probs)
        found[f"{name}/point"] = np.array(trainer._metrics["eval"]["kl"][0])
    return found


def reward():
    """The mean Bradley-Terry loss with and without margin and centring, and its gradient by the scores ``[2, B]``."""
    import torch
    from trl.trainer.reward_trainer import RewardTrainer

    drawn, found = inputs(), {}
    for name, margin, centring in (("plain", False, None), ("margin", True, None), ("centred", True, 0.05)):
        (scores,) = _tensors(drawn["scores"].reshape(-1, 1))
        batch = {"attention_mask": torch.ones(1)} | ({"margin": torch.tensor(drawn["margin"])} if margin else {})
        trainer = _trainer(args=Names(center_rewards_coefficient=centring))
        loss = RewardTrainer.compute_loss(trainer, lambda scores=scores, **_: Names(logits=scores), batch)
        value, gradient = _with_gradient(loss, scores)
        found[f"reward/{name}/loss"], found[f"reward/{name}/gradient"] = value, gradient.reshape(2, B)
    return found


def group_losses():
    """GRPO in its two means, without and with the KL to the reference, and RLOO: the mean and its gradient."""
    import torch
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

    drawn, found = inputs(), {}
    mask = torch.tensor(drawn["mask"][0])
    cases = {
        "grpo": (GRPOTrainer, {"loss_type": "grpo", "beta": 0.0}),
        "grpo_kl": (GRPOTrainer, {"loss_type": "grpo", "beta": 0.04}),
        "grpo_tokens": (GRPOTrainer, {"loss_type": "bnpo", "beta": 0.0}),
        "rloo": (RLOOTrainer, {}),
    }
    for name, (kind, settings) in cases.items():
        (log_probs,) = _tensors(drawn["old"][0] + 0.3 * drawn["values"][0])
        ids = {key: torch.zeros(B, 1, dtype=torch.long) for key in ("prompt_ids", "prompt_mask")}
        batch = {
            **ids,
            "completion_ids": torch.zeros(B, T, dtype=torch.long),
            "completion_mask": mask,
            "advantages": torch.tensor(drawn["rewards"]),
            "old_per_token_logps": torch.tensor(drawn["old"][0]),
            "old_logps": torch.tensor((drawn["old"][0] * drawn["mask"][0]).sum(-1)),
            "ref_per_token_logps": torch.tensor(drawn["reference"][0]),
        }
        trainer = _trainer(
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            importance_sampling_level="token",
            epsilon_low=0.2,
            epsilon_high=0.3 if kind is GRPOTrainer else 0.2,
            use_vllm=False,
            _entropy_bonus_enabled=False,
            args=Names(use_bias_correction_kl=False, delta=None),
            _get_per_token_logps_and_entropies=lambda *_, p=log_probs, **__: (p, torch.zeros(B, T), None),
            **settings,
        )
        found[f"{name}/loss"], found[f"{name}/gradient"] = _with_gradient(
            kind._compute_loss(trainer, None, batch), log_probs
        )
    return found


def distillation():
    """The summed divergence at two temperatures and its gradient by the student's logits."""
    import torch
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    drawn, found = inputs(), {}
    labels = torch.tensor(np.where(drawn["mask"][0] == 1, 0, -100))
    for temperature in (1.0, 2.5):
        (student,) = _tensors(drawn["student"])
        teacher = torch.tensor(drawn["teacher"])
        loss = GKDTrainer.generalized_jsd_loss(
            student, teacher, labels, beta=0.0, temperature=temperature, reduction="sum"
        )
        found[f"distillation_{temperature}/loss"], found[f"distillation_{temperature}/gradient"] = _with_gradient(
            loss, student
        )
    return found


def ppo():
    """PPO's rewards, advantages, returns, losses with their gradients, and the adapted coefficient."""
    import torch
    from trl import PPOTrainer
    from trl.core import masked_whiten
    from trl.trainer.utils import AdaptiveKLController

    drawn, found = inputs(), {}
    mask = torch.tensor(drawn["mask"][0])
    old, reference = torch.tensor(drawn["old"][0]), torch.tensor(drawn["reference"][0])
    for penalty in ("kl", "mse"):
        config = Names(kl_penalty=penalty)
        trainer = Names(config=config, kl_ctl=Names(value=0.2))
        trainer._kl_penalty = lambda a, b, trainer=trainer: PPOTrainer._kl_penalty(trainer, a, b)
        rewards, _, kl = PPOTrainer.compute_rewards(trainer, torch.tensor(drawn["rewards"]), old, reference, mask)
        found[f"rewards/{penalty}"], found[f"kl/{penalty}"] = rewards.numpy(), kl.numpy()
    settings = {"gamma": 0.97, "lam": 0.9, "cliprange": 0.2, "cliprange_value": 0.3, "vf_coef": 1.0}
    values = torch.tensor(drawn["values"][1])
    config = Names(whiten_rewards=False, ratio_threshold=10.0, **settings)
    rewards = torch.tensor(found["rewards/kl"])
    _, advantages, returns = PPOTrainer.compute_advantages(Names(config=config), values, rewards, mask)
    found |= {"advantages": advantages.numpy(), "returns": returns.numpy()}
    # With whiten_rewards its advantages would also hold what the whitening makes of padding, so it stands alone.
    found["whitened_rewards"] = masked_whiten(rewards * mask, mask, shift_mean=False).numpy()
    new, predicted = _tensors(drawn["old"][0] + 0.3 * drawn["values"][0], drawn["values"][2])
    logits = torch.zeros(B, T, V)
    policy, value, stats = PPOTrainer.loss(
        Names(config=config), old, values, logits, predicted, new, mask, torch.tensor(drawn["advantages"]), returns
    )
    (policy + value).backward()
    found |= {"policy/loss": policy.detach().numpy(), "policy/gradient": new.grad.numpy()}
    found |= {"value/loss": value.detach().numpy(), "value/gradient": predicted.grad.numpy()}
    found |= {"policy/clipped": stats["policy/clipfrac"].numpy(), "policy/kl": stats["policy/policykl"].numpy()}
    control = AdaptiveKLController(0.2, 6.0, 10_000)
    coefficients = []
    for kl in (5.0, 6.5, 30.0, 0.1):
        control.update(kl, 256)
        coefficients.append(control.value)
    return {**found, "coefficients": np.array(coefficients)}


def make():
    """Everything that TRL 1 has."""
    return {**pair_losses(), **reference_free(), **kto(), **reward(), **group_losses(), **distillation()}


def load(file=FILE):
    """A golden file."""
    with np.load(file) as stored:
        return {name: stored[name] for name in stored.files}


if __name__ == "__main__":
    import trl

    file, made = (PPO_FILE, ppo()) if trl.__version__.startswith("0.") else (FILE, make())
    np.savez_compressed(file, **made)
    print(f"{file} {file.stat().st_size / 1000:.0f} kB, {len(made)} arrays by trl {trl.__version__}")
