"""What is installed here, for `portconv info`: libraries with their devices and engines, tiers, threads, files."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import portconv
from portconv import wisdom

from ..machine import vector_bits
from ..processes.machine import machine
from ..processes.session import THREAD_VARIABLES
from .runner import Checks, libraries

__all__ = ["installation", "library_lines", "lines"]

START_LIMIT = 120.0  # seconds for the devices of a library


def _threads() -> dict[str, Any]:
    variables = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    try:
        return {"threads": portconv.get_num_threads(), "environment": variables}
    except ValueError as error:  # PORTCONV_NUM_THREADS is no number: that is what one wants to read here
        return {"threads": None, "error": str(error), "environment": variables}


def _wisdom() -> dict[str, Any]:
    """The file of kept measurements."""
    try:
        path = wisdom.path()
    except wisdom.WisdomError as error:  # nothing says where the user's home is
        return {"path": None, "exists": False, "error": str(error)}
    return {"path": str(path), "exists": path.exists()}


def installation() -> dict[str, Any]:
    """Everything as JSON has it. Each library is imported by a process of its own, since some can crash on import."""
    with Checks(libraries(), START_LIMIT) as checks:
        checks.survey()
    found = {}
    tier: dict[str, Any] = {"state": "off", "why": "Numba is not installed; pip install 'portconv[jit]' brings it"}
    if os.environ.get("PORTCONV_JIT", "1") == "0":
        tier["why"] = "PORTCONV_JIT is 0"
    blas = None
    for library in checks.libraries:
        versions = dict(library.versions)
        blas = versions.pop("blas", blas)
        if library.tier == "compiled":
            tier = library.compiled or {"state": "broken", "why": library.missing or library.error}
        found[library.label] = {
            "version": versions.get("mlx.core" if library.name == "mlx" else library.name),
            "missing": library.missing or library.error or None,
            "devices": library.devices,
        }
    return {
        "portconv": portconv.__version__,
        "folder": os.path.dirname(portconv.__file__),  # noqa: PTH120  as it is imported, not resolved
        "python": f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}",
        "machine": {**machine(), "vector_bits": vector_bits()},
        "blas": blas,
        "compiled_tier": tier,
        **_threads(),
        "wisdom": _wisdom(),
        "libraries": found,
    }


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What `installation` found beside the libraries, as a reader wants it: names and texts."""
    where = found["machine"]
    bits = f", vectors of {where['vector_bits']} bits" if where["vector_bits"] else ""
    memory = f", {where['memory_gib']} GiB" if where["memory_gib"] else ""
    threads = found["threads"] if found["threads"] is not None else found["error"]
    variables = " ".join(f"{name}={value}" for name, value in found["environment"].items())
    told = [
        ("portconv", f"{found['portconv']}, {found['folder']}"),
        ("Python", found["python"]),
        ("platform", f"{where['os']}, {where['architecture']}"),
        ("CPU", f"{where['cpu']}, {where['usable_cores']} of {where['cores']} cores{bits}{memory}"),
        ("NumPy's BLAS", found["blas"] or "unknown"),
        ("compiled tier", _tier(found["compiled_tier"])),
        ("threads", f"{threads}" + (f" ({variables})" if variables else "")),
    ]
    kept = found["wisdom"]
    told.append(("wisdom", kept.get("error") or kept["path"] + ("" if kept["exists"] else " (not written yet)")))
    return told


def _tier(tier: dict[str, Any]) -> str:
    if tier["state"] != "on":
        return f"{tier['state']}: {tier['why']}" if "why" in tier else tier["state"]
    kept = f"{tier['files']} kernels, {tier['mib']} MiB in {tier['cache']}" if tier["cache"] else "its code is not kept"
    return f"on, Numba {tier['numba']}; {kept}"


def library_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The libraries that `installation` found, in the same form."""
    told = []
    for name, library in found["libraries"].items():
        for device, here in library["devices"].items():
            told.append((name, f"{library['version']}, {device}: {', '.join(here['able'])}"))
        if library["missing"]:
            told.append((name, library["missing"]))
    return told
