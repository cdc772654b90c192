"""Files are there whole or not at all."""

from __future__ import annotations

import os

import pytest

from portconv.core.files import replace_file


def test_a_failure_leaves_the_file_as_it_was(tmp_path):
    target = tmp_path / "a.npz"
    replace_file(target, lambda path: path.write_bytes(b"one"))

    def fail(path):
        assert path.suffix == ".npz" and path.parent == tmp_path
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(target, fail)
    assert target.read_bytes() == b"one" and list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other modes and links")
def test_modes_and_links(tmp_path):
    target, link = tmp_path / "folder" / "a", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    for mode in (0o600, 0o644):
        replace_file(link, lambda path: path.write_bytes(b"one"), mode)
        assert link.is_symlink() and target.read_bytes() == b"one" and target.stat().st_mode & 0o777 == mode
