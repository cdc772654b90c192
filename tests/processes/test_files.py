"""Files are there whole or not at all."""

from __future__ import annotations

import json

import pytest

from portconv.processes import files


def test_files_are_there_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.json"
    files.write_json(target, {"a": 1})

    def fail(file):
        file.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.replace_file(target, fail)
    assert json.loads(target.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [target]
