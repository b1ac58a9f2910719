import errno
import json
import logging
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.schema import UserError
from jaxformer.training.checkpoint import MANIFEST, Checkpoints, find_damage


def state(value):
    return {"a": jnp.full((3, 4), float(value)), "b": {"c": jnp.arange(5) + value, "none": None}}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints", keep_last=2, keep_best=1)
    yield opened
    opened.close()


def test_restores_the_newest_with_equal_values(checkpoints):
    assert checkpoints.restore(abstract(state(0))) is None
    for step in (3, 7):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    step, restored = checkpoints.restore(abstract(state(0)))
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, restored, state(7))


def test_values_are_those_at_the_call_though_the_buffers_are_donated_right_after(checkpoints):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {"a": jnp.zeros(1_000_000)}
    checkpoints.save(0, tree)
    for _ in range(5):
        tree = advance(tree)
    checkpoints.wait()
    _, restored = checkpoints.restore(abstract(tree))
    assert float(jnp.max(jnp.abs(restored["a"]))) == 0.0


def test_keeps_the_last_two_and_the_best(checkpoints):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 5.0)):
        checkpoints.save(step, state(step), loss)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]


def test_saving_a_step_again_changes_nothing(checkpoints):
    checkpoints.save(1, state(1))
    checkpoints.save(1, state(2))
    checkpoints.wait()
    assert float(checkpoints.restore(abstract(state(0)))[1]["a"][0, 0]) == 1.0


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST), key=lambda p: p.stat().st_size)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(("harm", "words"), [(truncate, "bytes, expected"), (lambda f: f.unlink(), "is missing")])
def test_a_harmed_file_is_named_and_the_checkpoint_before_it_is_used(checkpoints, caplog, harm, words):
    for step in (1, 2):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    victim = largest_file(checkpoints.folder / "2")
    harm(victim)
    with caplog.at_level(logging.WARNING, logger="jaxformer"):
        step, restored = checkpoints.restore(abstract(state(0)))
    assert step == 1
    assert float(restored["a"][0, 0]) == 1.0
    assert str(victim) in caplog.text
    assert words in caplog.text
    assert (checkpoints.folder / "damaged-2").is_dir(), "set aside, not lost"
    checkpoints.save(2, state(9))
    checkpoints.wait()
    assert checkpoints.restore(abstract(state(0)))[0] == 2


def test_harm_without_a_list_of_files_shows_in_loading(checkpoints, caplog):
    for step in (1, 2):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    (checkpoints.folder / "2" / MANIFEST).unlink()
    victim = largest_file(checkpoints.folder / "2")
    victim.write_bytes(b"")
    assert checkpoints.restore(abstract(state(0)))[0] == 1
    assert "checkpoint of step 2 is damaged" in caplog.text


def test_all_harmed_is_an_error(checkpoints):
    checkpoints.save(1, state(1))
    checkpoints.wait()
    largest_file(checkpoints.folder / "1").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* can be used"):
        checkpoints.restore(abstract(state(0)))


def test_another_shape_is_named(checkpoints):
    checkpoints.save(1, state(1))
    checkpoints.wait()
    other = {"a": jnp.zeros((3, 5)), "b": {"c": jnp.arange(5), "none": None}}
    with pytest.raises(UserError, match=r"a is float32\[3, 4\], expected float32\[3, 5\] \(1 differ\)"):
        checkpoints.restore(abstract(other))


def test_parts_that_hold_nothing_and_differ_are_refused_and_the_checkpoint_stays(checkpoints):
    checkpoints.save(1, state(1))
    checkpoints.wait()
    other = {"a": jnp.zeros((3, 4)), "b": {"c": jnp.arange(5)}}
    with pytest.raises(UserError, match="checkpoint of step 1 is intact, but its tree differs"):
        checkpoints.restore(abstract(other))
    assert checkpoints.restore(abstract(state(0)))[0] == 1


def test_the_list_names_every_file(checkpoints):
    checkpoints.save(1, state(1))
    checkpoints.wait()
    folder = checkpoints.folder / "1"
    listed = json.loads((folder / MANIFEST).read_text())
    assert set(listed) == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    assert find_damage(folder) is None


def test_a_full_disk_is_said_and_the_last_good_checkpoint_is_named(checkpoints, monkeypatch):
    checkpoints.save(1, state(1))
    checkpoints.wait()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints._checkpointer, "save_async", full)
    with pytest.raises(
        UserError, match=r"step 2 could not be written .*: the disk is full; the last good one is step 1"
    ):
        checkpoints.save(2, state(2))
    assert checkpoints.restore(abstract(state(0)))[0] == 1


def test_reading_leaves_what_is_being_written(tmp_path):
    state = {"x": jnp.arange(3.0)}
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(1, state)
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        np.testing.assert_array_equal(checkpoints.read()["x"], [0, 1, 2])
    assert unfinished.exists()
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.restore(state)
    assert not unfinished.exists()
