"""What ran: the code's version, the libraries, the machine."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from rl_natgrad.version import __version__

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = (
    "torch", "gymnasium", "numpy", "hydra-core", "pydantic", "safetensors", "tensorboard",
    "mujoco", "box2d-py", "box2d", "ale-py", "envpool", "mujoco-warp", "warp-lang",
)  # fmt: skip


def git_state(package: Path = PACKAGE) -> dict | None:
    """Commit of the package's checkout, and whether its code or configs differ from it; None for a wheel.

    The checkout is looked for beside the package only: a wheel in a virtual environment that lies inside
    somebody's repository must not claim that repository's commit.
    """
    root = package.parent
    if not (root / ".git").exists():
        return None
    # No GIT_DIR from a calling hook; no index lock, which 20 simultaneous starts would fight over.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env["GIT_OPTIONAL_LOCKS"] = "0"
    command = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch", "--", package.name, "configs"]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.splitlines()
    oid = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    return {"hash": oid, "dirty": any(not line.startswith("#") for line in lines)}


def versions() -> dict[str, str]:
    """Version of Python, of this package and of each installed library that can change a number."""
    found = {"python": platform.python_version(), "rl_natgrad": __version__}
    for name in LIBRARIES:
        try:
            found[name.removesuffix("-core")] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
