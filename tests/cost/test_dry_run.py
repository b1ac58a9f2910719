from jaxformer.cost.dry_run import plan
from tests.training.helpers import make_run, tiny_keys


def test_the_plan_counts_by_hand(tmp_path):
    keys = tiny_keys(tmp_path, batch_size=16, accumulate=2, steps=10)
    run = make_run(keys)
    lines = plan(run)
    # V=257, P=16, D=16, L=2: tables, two blocks of 12 D^2 + 13 D, the final norm.
    count = 257 * 16 + 16 * 16 + 2 * (12 * 256 + 13 * 16) + 2 * 16
    assert f"{count:,} parameters" in lines["model"]
    assert lines["devices"].startswith("8 x cpu")
    assert lines["batch"].startswith("16 rows = 1 per device x 8 devices x 2 accumulated; 16 tokens a row, 256 tokens")
    assert f"{10 / run.train_batches.steps_per_epoch:.2f} epochs" in lines["steps"]
