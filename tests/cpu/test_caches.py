"""The sizes of caches: what is read where the system tells them, and 0 elsewhere."""

from __future__ import annotations

import pytest

from portconv.cpu import caches

FILES = {
    0: ("1", "Data", "48K"),
    1: ("1", "Instruction", "32K"),
    2: ("2", "Unified", "2048K"),
    3: ("3", "Unified", "307200K"),
}


@pytest.fixture(autouse=True)
def forgotten():
    caches.cache_bytes.cache_clear()
    yield
    caches.cache_bytes.cache_clear()


def on_linux(monkeypatch, files):
    def text(name):
        folder, _, file = name.rpartition("/")
        found = files.get(int(folder.rpartition("index")[2]))
        if found is None:
            raise FileNotFoundError
        return found[("level", "type", "size").index(file)]

    monkeypatch.setattr(caches.sys, "platform", "linux")
    monkeypatch.setattr(caches, "_text", text)


def test_linux(monkeypatch):
    on_linux(monkeypatch, {1: FILES[1], 0: FILES[0], **FILES})
    assert [caches.cache_bytes(level) for level in (1, 2, 3)] == [48 << 10, 2 << 20, 300 << 20]


def test_linux_with_the_instructions_first_and_without_a_third_cache(monkeypatch):
    on_linux(monkeypatch, {0: FILES[1], 1: FILES[0], 3: ("2", "Unified", "524288")})
    assert [caches.cache_bytes(level) for level in (1, 2, 3)] == [48 << 10, 512 << 10, 0]


@pytest.mark.parametrize(
    ("told", "sizes"),
    [
        (
            {"hw.perflevel0.l1dcachesize": 128 << 10, "hw.perflevel0.l2cachesize": 12 << 20, "hw.l2cachesize": 4 << 20}
            | {"hw.perflevel0.cpusperl2": 4},
            [128 << 10, 3 << 20, 0],
        ),
        ({"hw.l1dcachesize": 32 << 10, "hw.l2cachesize": 256 << 10}, [32 << 10, 256 << 10, 0]),
        ({}, [0, 0, 0]),
    ],
    ids=["shared", "one kind of cores", "nothing"],
)
def test_macos(monkeypatch, told, sizes):
    monkeypatch.setattr(caches.sys, "platform", "darwin")
    monkeypatch.setattr(caches, "_sysctl", lambda name: told.get(name, 0))
    assert [caches.cache_bytes(level) for level in (1, 2, 3)] == sizes


def test_elsewhere(monkeypatch):
    monkeypatch.setattr(caches.sys, "platform", "win32")
    assert caches.cache_bytes(2) == 0


def test_blocks_fit_this_machine():
    pytest.importorskip("numba")
    from portconv.cpu.compiled.base import CACHE_BYTES
    from portconv.cpu.compiled.gemm.plan import FIRST_CACHE_BYTES

    for size, level in ((FIRST_CACHE_BYTES, 1), (CACHE_BYTES, 2)):
        assert size > 0 and (caches.cache_bytes(level) == 0 or size < caches.cache_bytes(level))
