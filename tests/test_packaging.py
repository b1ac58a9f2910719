"""Requirements in pyproject.toml: extras can be installed beside each other, in any order."""

import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def clashes(groups):
    """Packages that no version satisfies everywhere or that are bound from above, with the groups that ask for them.

    A bound from above is a clash to come: what one extra holds back another upgrades.
    """
    asked = defaultdict(dict)
    for group, requirements in groups.items():
        for requirement in map(Requirement, requirements):
            asked[requirement.name.lower().replace("_", "-")][group] = requirement.specifier
    found = {}
    for name, specifiers in asked.items():
        together = SpecifierSet(",".join(str(specifier) for specifier in specifiers.values()))
        bounds = {Version(one.version.removesuffix(".*")) for one in together}
        # The lowest that fits is at a bound, or just above one.
        near = bounds | {Version(f"{bound}.1") for bound in bounds} | {Version("0"), Version("99999")}
        open_above = all(one.operator in (">=", "!=", ">") for one in together)
        if not any(together.contains(version, prereleases=True) for version in near) or not open_above:
            found[name] = sorted(specifiers)
    return found


def test_every_two_extras_go_together():
    assert clashes({"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}) == {}


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("torch>=2.6", "torch>=2.9", False),
        ("torch>=2.6", "torch>2.6,!=2.7", False),
        ("torch>=2.6", "torch<2.6", True),
        ("torch>=2.6", "torch==2.5.1", True),
        ("torch>=2.6", "Torch<3", True),
        ("numpy", "numpy>=2", False),
    ],
)
def test_a_clash_is_found(first, second, clash):
    assert bool(clashes({"a": [first], "b": [second]})) == clash


def test_extras_within_extras_exist():
    named = [Requirement(one) for extra in PROJECT["optional-dependencies"].values() for one in extra]
    inner = {extra for one in named if one.name == PROJECT["name"] for extra in one.extras}
    assert inner and inner <= PROJECT["optional-dependencies"].keys()
