"""What an install brings is what the source has."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_package_of_the_source_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(package.parent.relative_to(root.parent).parts)
        for root in (ROOT / folder for folder in settings["package-dir"].values())
        for package in root.rglob("__init__.py")
    }
    assert found == set(settings["packages"])
