import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.functional import Mask, position_ids_from_mask


def matrix(*rows):
    return np.array([[cell == "x" for cell in row] for row in rows])


def assert_mask(mask, expected, query_length, key_length):
    got = mask.array(query_length, key_length)
    np.testing.assert_array_equal(np.asarray(got), expected)


def test_no_condition_is_no_array():
    assert Mask().array(3, 4) is None


def test_causal():
    assert_mask(Mask(causal=True), [matrix("x...", "xx..", "xxx.", "xxxx")], 4, 4)


def test_causal_with_an_offset():
    # Two queries behind three keys that a cache holds.
    expected = [matrix("xxxx..", "xxxxx.")]
    assert_mask(Mask(causal=True, query_offset=3), expected, 2, 6)
    assert_mask(Mask(causal=True, query_offset=jnp.array(3)), expected, 2, 6)


def test_causal_window_counts_the_token_itself():
    assert_mask(Mask(causal=True, window=2), [matrix("x....", "xx...", ".xx..", "..xx.", "...xx")], 5, 5)
    assert_mask(Mask(causal=True, window=1), [np.eye(5, dtype=bool)], 5, 5)


def test_window_on_both_sides():
    assert_mask(Mask(window=2), [matrix("xx...", "xxx..", ".xxx.", "..xxx", "...xx")], 5, 5)


def test_window_measured_by_positions():
    # Places 2 and 3 hold padding between a prompt of two tokens and its continuation.
    positions = jnp.array([[0, 1, 0, 0, 2, 3]])
    valid = jnp.array([[1, 1, 0, 0, 1, 1]], bool)
    mask = Mask(
        causal=True,
        window=2,
        key_valid=valid,
        query_positions=positions[:, 4:],
        key_positions=positions,
        query_offset=4,
    )
    assert_mask(mask, [matrix(".x..x.", "....xx")], 2, 6)


def test_padding_hides_keys_only():
    valid = jnp.array([[1, 1, 0], [0, 1, 1]], bool)
    assert_mask(Mask(key_valid=valid), [matrix("xx.", "xx.", "xx."), matrix(".xx", ".xx", ".xx")], 3, 3)


def test_segments_with_causal():
    segments = jnp.array([[1, 1, 2, 2, 2, 0]])
    mask = Mask(causal=True, query_segments=segments, key_segments=segments)
    assert_mask(mask, [matrix("x.....", "xx....", "..x...", "..xx..", "..xxx.", "......")], 6, 6)


def test_segments_of_queries_and_keys_may_differ():
    # A decoder's two documents look at an encoder's two.
    mask = Mask(query_segments=jnp.array([[1, 2, 2]]), key_segments=jnp.array([[1, 1, 2, 0]]))
    assert_mask(mask, [matrix("xx..", "..x.", "..x.")], 3, 4)


def test_all_conditions_are_joined_by_and():
    segments = jnp.array([[1, 1, 1, 1, 2, 2]])
    valid = jnp.array([[1, 1, 0, 1, 1, 1]], bool)
    mask = Mask(causal=True, window=3, key_valid=valid, query_segments=segments, key_segments=segments)
    assert_mask(mask, [matrix("x.....", "xx....", "xx....", ".x.x..", "....x.", "....xx")], 6, 6)


def test_a_block_is_a_part_of_the_array():
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]])
    mask = Mask(causal=True, window=3, query_segments=segments, key_segments=segments)
    whole = mask.array(8, 8)
    np.testing.assert_array_equal(np.asarray(mask.block(3, 6, 1, 6)), np.asarray(whole)[:, 3:6, 1:6])
    mask = Mask(causal=True, key_prefix=jnp.array([[0, 1, 0, 1, 1, 0]], bool))
    np.testing.assert_array_equal(mask.block(1, 4, 2, 6), np.asarray(mask.array(6, 6))[:, 1:4, 2:6])


def test_key_padding():
    segments, valid = jnp.array([[1, 2, 0, 0]]), jnp.array([[0, 1, 1, 0]], bool)
    assert Mask(causal=True).key_padding is None
    both = Mask(key_valid=valid, query_segments=segments, key_segments=segments).key_padding
    np.testing.assert_array_equal(np.asarray(both), [[False, True, False, False]])


@pytest.mark.parametrize("given", ["query_segments", "key_segments", "query_positions", "key_positions"])
def test_one_side_alone_is_refused(given):
    with pytest.raises(ValueError, match=f"only {given} is given, expected query_.* and key_.* or neither"):
        Mask(causal=True, window=2, **{given: jnp.array([[1, 1]])}).array(2, 2)


def test_a_mask_is_a_pytree_whose_static_part_stays_static():
    mask = Mask(causal=True, window=2, key_valid=jnp.array([[True, False, True]]))
    inside = jax.jit(lambda m: (m.array(3, 3), jnp.array([m.causal, m.window == 2, m.query_offset is None])))(mask)
    np.testing.assert_array_equal(np.asarray(inside[0]), np.asarray(mask.array(3, 3)))
    assert bool(jnp.all(inside[1]))


def test_position_ids_count_real_tokens():
    real = jnp.array([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]])
    expected = [[0, 1, 2, 3], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    np.testing.assert_array_equal(np.asarray(position_ids_from_mask(real)), expected)
    np.testing.assert_array_equal(np.asarray(position_ids_from_mask(real.astype(bool))), expected)


def test_reach_is_a_window_that_is_known_later():
    segments = jnp.array([[1, 1, 1, 1, 2, 2]])
    for causal in (True, False):
        made = jax.jit(
            lambda reach, causal=causal: Mask(causal, None, None, segments, segments, reach=reach).array(6, 6)
        )
        for width in (1, 2, 3, 100):
            window = Mask(causal, width, query_segments=segments, key_segments=segments)
            np.testing.assert_array_equal(made(jnp.array(width)), window.array(6, 6))
    for reach, window in ((2, 4), (4, 2)):  # the shorter of both counts
        assert_mask(Mask(causal=True, window=window, reach=jnp.array(reach)), Mask(True, 2).array(5, 5), 5, 5)


def test_reach_measured_by_positions():
    positions = jnp.array([[0, 1, 5, 6]])
    mask = Mask(reach=jnp.array(2), query_positions=positions, key_positions=positions)
    assert_mask(mask, [matrix("xx..", "xx..", "..xx", "..xx")], 4, 4)


def test_every_query_sees_the_prefix():
    prefix = jnp.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    expected = [
        matrix("xxx..", "xxx..", "xxx..", "xxxx.", "xxxxx"),
        matrix("x....", "xx...", "xxx..", "xxxx.", "xxxxx"),
    ]
    assert_mask(Mask(causal=True, key_prefix=prefix), expected, 5, 5)


def test_a_prefix_stays_in_its_document_its_window_and_the_data():
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 0]])
    prefix = jnp.array([[1, 1, 0, 1, 1, 0, 0]], bool)
    mask = Mask(causal=True, query_segments=segments, key_segments=segments, key_prefix=prefix)
    documents = matrix("xx.....", "xx.....", "xxx....", "...xx..", "...xx..", "...xxx.", ".......")
    assert_mask(mask, [documents], 7, 7)
    assert_mask(
        Mask(causal=True, window=2, key_prefix=jnp.array([[1, 1, 1, 0]], bool)),
        [matrix("xx..", "xxx.", ".xx.", "..xx")],
        4,
        4,
    )
    valid = jnp.array([[0, 1, 1, 1]], bool)
    mask = Mask(causal=True, key_valid=valid, key_prefix=jnp.array([[1, 1, 0, 0]], bool))
    assert_mask(mask, [matrix(".x..", ".x..", ".xx.", ".xxx")], 4, 4)


def test_distance_by_index():
    assert Mask().distance(2, 3).tolist() == [[[0, 1, 2], [-1, 0, 1]]]
    for offset in (3, jnp.array(3)):
        assert Mask(query_offset=offset).distance(2, 5).tolist() == [[[-3, -2, -1, 0, 1], [-4, -3, -2, -1, 0]]]


def test_distance_by_positions():
    # Padding stands between a prompt of two tokens and its continuation; the second row has none.
    positions = jnp.array([[0, 1, 0, 2, 3], [0, 1, 2, 3, 4]])
    mask = Mask(query_offset=3, query_positions=positions[:, 3:], key_positions=positions)
    expected = [[[-2, -1, -2, 0, 1], [-3, -2, -3, -1, 0]], [[-3, -2, -1, 0, 1], [-4, -3, -2, -1, 0]]]
    assert mask.distance(2, 5).tolist() == expected
