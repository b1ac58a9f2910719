import pytest

from jaxformer.atomic import replacing, write_atomically


def test_a_file_is_replaced_whole(tmp_path):
    write_atomically(tmp_path / "a.txt", "één\n")
    write_atomically(tmp_path / "a.txt", b"two\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"two\r\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "a.txt", "one")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
