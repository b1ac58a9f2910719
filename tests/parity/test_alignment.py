"""The golden values of alignment are what TRL computes now."""

import numpy as np
import pytest

from tests.golden import alignment

pytestmark = pytest.mark.parity


def test_the_golden_file_is_what_trl_makes_now():
    stored, made = alignment.load(), alignment.make()
    assert stored.keys() == made.keys()
    for key in stored:
        np.testing.assert_allclose(stored[key], made[key], rtol=1e-10, err_msg=key)
