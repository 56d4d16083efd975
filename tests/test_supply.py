"""What is installed: locks, bounds, licences. Nothing here asks a registry."""

import re
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from pip._internal.models.index import PyPI, TestPyPI

from requirements import licences, lock
from tests.runs import ROOT

LOCKS = [*lock.OLDEST_PYTHON, lock.ENCODER, lock.AHEAD, lock.SITE, lock.RELEASE]
RELEASE = re.compile(
    r"[a-z0-9]+(-[a-z0-9]+)*==[A-Za-z0-9.!+]+( ; [a-zA-Z0-9_ .<>=!'()-]+)?"
    r"( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_releases_with_hashes(name):
    text = (lock.FOLDER / name).read_text()
    assert "".join(match[0] for match in RELEASE.finditer(text)) == text


def test_what_is_installed_from_a_lock_needs_its_hash():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(
        r"^INSTALL = .* --no-deps --require-hashes --only-binary :all:$", makefile, re.M
    )
    installed = re.findall(r"^\t@(.*) -r (\$\([A-Z]+\))$", makefile, re.M)
    assert installed == [
        ("$(INSTALL)", "$(ENCODER)"),
        ("$(INSTALL) --target $(AOT)", "$(COMPILERS)"),
        ("$(INSTALL) --target $(SPHINX)", "$(BUILDERS)"),
        ("$(INSTALL)", "$(RELEASERS)"),
        ("$(INSTALL)", "$(LOCK)"),
    ]


def test_the_compilers_are_those_of_the_lock_beside_them():
    """Of the same JAX, and nothing that an environment has already."""
    held = lock.releases((lock.FOLDER / "lock-py311.txt").read_text())
    added = lock.releases((lock.FOLDER / lock.AHEAD).read_text())
    assert added.keys().isdisjoint(held)
    assert {"libtpu", "nvidia-cuda-nvcc-cu12"} <= added.keys()
    assert added["jax-cuda12-plugin"] == added["jax-cuda12-pjrt"] == held["jaxlib"]


def test_the_site_is_built_beside_either_lock():
    """By nothing that both of them hold, and where one holds it, by the same release."""
    added = lock.releases((lock.FOLDER / lock.SITE).read_text())
    oldest, newest = (lock.releases((lock.FOLDER / n).read_text()) for n in lock.OLDEST_PYTHON)
    assert added.keys().isdisjoint(oldest.keys() & newest.keys())
    assert {name: oldest[name] for name in added if name in oldest}.items() <= added.items()
    wanted = lock.stated()["project"]["optional-dependencies"]["docs"]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(added[requirement.name]), requirement


def test_a_release_is_built_by_what_every_lock_builds_with():
    held = lock.releases((lock.FOLDER / lock.RELEASE).read_text())
    (builder,) = (Requirement(one).name for one in lock.stated()["build-system"]["requires"])
    for name in lock.OLDEST_PYTHON:
        assert lock.releases((lock.FOLDER / name).read_text())[builder] == held[builder]
    for stated in lock.stated()["project"]["optional-dependencies"]["release"]:
        requirement = Requirement(stated)
        assert requirement.specifier.contains(held[requirement.name]), requirement


@pytest.mark.parametrize("name", lock.OLDEST_PYTHON)
def test_a_lock_meets_every_bound(name):
    releases = lock.releases((lock.FOLDER / name).read_text())
    for stated in lock.requirements().values():
        for requirement in map(Requirement, stated):
            assert requirement.specifier.contains(releases[requirement.name]), requirement


def test_a_package_is_bound_from_below_and_everywhere_alike():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(lock.EXTRAS) <= set(project["optional-dependencies"])
    bounds: dict[str, str] = {}
    for stated in lock.requirements().values():
        for requirement in map(Requirement, stated):
            assert re.fullmatch(r">=[0-9.]+", str(requirement.specifier)), requirement
            known = bounds.setdefault(requirement.name, str(requirement.specifier))
            assert str(requirement.specifier) == known, requirement


def test_the_licence_of_everything_locked_is_known_and_accepted():
    stated = {}
    for line in licences.PAGE.read_text().splitlines():
        if line.startswith("| ") and line.count("|") == 5:
            name, versions, named, _ = (cell.strip() for cell in line[1:-1].split("|"))
            stated[name] = (set(versions.split(", ")), named.split(", "))
    del stated["package"]
    locked: dict[str, set[str]] = {}
    for file in lock.OLDEST_PYTHON:
        for name, version in lock.releases((lock.FOLDER / file).read_text()).items():
            locked.setdefault(name, set()).add(version)
    assert {name: versions for name, (versions, _) in stated.items()} == locked
    assert not {n: e for n, (_, each) in stated.items() for e in each if licences.unaccepted(e)}
    assert licences.PAGE.read_text().startswith(licences.INTRODUCTION)


@pytest.mark.parametrize(
    ("metadata", "expected", "refused"),
    [
        ({"license_expression": "MIT", "license": "GPL"}, "MIT", []),
        ({"license": "Apache 2.0"}, "Apache-2.0", []),
        ({"license": "A\ntext", "classifier": ["License :: MIT License"]}, "MIT", []),
        ({"license": "UNKNOWN", "classifier": ["Topic :: Software"]}, "unknown", ["unknown"]),
        ({}, "unknown", ["unknown"]),
        ({"license": "GPL-3.0-only"}, "GPL-3.0-only", ["GPL-3.0-only"]),
        (
            {"license_expression": "MIT AND (AGPL-3.0-only OR GPL-2.0)"},
            "MIT AND (AGPL-3.0-only OR GPL-2.0)",
            ["AGPL-3.0-only", "GPL-2.0"],
        ),
        ({"license_expression": "MIT AND (AFL-2.1 OR ISC)"}, "MIT AND (AFL-2.1 OR ISC)", []),
        (
            {"classifier": ["License :: OSI Approved :: GNU General Public License (GPL)"]},
            "GNU General Public License (GPL)",
            ["GNU General Public License (GPL)"],
        ),
    ],
)
def test_licences_are_read_from_metadata(metadata, expected, refused):
    assert licences.licence(metadata) == expected
    assert licences.unaccepted(expected) == refused


def test_the_settings_of_pip_are_read_in_its_order():
    listed = """\
:env:.index-url='of the environment'
global.cert='/a'
global.index-url='of all'
install.cert='/b'
"""
    assert lock.pip_settings(listed) == {"index-url": "of the environment", "cert": "/b"}


def test_no_file_names_a_registry():
    """Whoever installs chooses the registry: pip's configuration does, not this repository."""
    hosts = {PyPI.netloc, TestPyPI.netloc, PyPI.file_storage_domain, TestPyPI.file_storage_domain}
    listed = subprocess.run(
        ("git", "-C", ROOT, "ls-files", "-z"), stdout=subprocess.PIPE, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        content = (ROOT / name).read_bytes()
        assert not [host for host in hosts if host.encode() in content], name
