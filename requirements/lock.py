"""Write the locks: ``make lock``, with any supported Python; needs the network.

A lock lists releases with the hash of every file of each, so that it installs wherever a release
has a wheel. A package that only some platforms or Pythons need has a marker. uv resolves, in an
environment that is deleted afterwards. It asks the package index that pip is configured with, whose
address is not written. A release in a lock stays while ``pyproject.toml`` allows it; its hashes are
asked for again. Arguments go to uv: ``--upgrade``, or ``--upgrade-package NAME``.
"""

import ast
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
OLDEST_PYTHON = {"lock-py311.txt": "3.11", "lock-py313.txt": "3.12"}
"""Lock -> the oldest Python that installs it."""
ENCODER = "encoder.txt"
"""The lock of ``make encoder``: one package, without what it depends on."""
AHEAD = "aot.txt"
"""The lock of ``make aot``: compilers for a GPU and a TPU, of the JAX of Python 3.11's lock, and
nothing that that lock holds."""
SITE = "docs.txt"
"""The lock of ``make docs``: what builds the site, beside the packages of both other locks."""
RELEASE = "release.txt"
"""The lock of ``make release``: what builds and checks, in an environment of its own."""
EXTRAS = ("adapters", "cluster", "data", "test")
"""The extras that the locks hold."""
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "cert": "SSL_CERT_FILE",
}
"""Option of pip -> environment variable of uv with the same meaning."""


class Resolver(NamedTuple):
    """An environment with pip and uv."""

    python: Path
    environment: Mapping[str, str]
    """The variables that uv is called with."""

    def uv(self, *words: str | Path) -> str:
        """Call ``uv pip``; what it prints on standard output."""
        command = (self.python.with_name("uv"), "pip", *words)
        return subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def compile(self, wanted: Sequence[str], python: str, *words: str | Path) -> str:
        """Resolve requirements for every platform and every Python from this one on.

        Only wheels are considered: to ask a source distribution what it depends on runs its code.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".in") as file:
            file.write("\n".join(wanted))
            file.flush()
            return self.uv(
                "compile",
                *("--quiet", "--no-header", "--no-annotate", "--universal"),
                *("--fork-strategy", "fewest", "--only-binary", ":all:"),
                *("--python-version", python, *words, file.name),
            )


def pip_settings(listed: str) -> dict[str, str]:
    """Options of pip from what ``pip config list`` prints.

    Where an option stands in several sections, pip takes the environment's, then that of the
    command ``install``, then the global one.
    """
    settings = {}
    for section in ("global", "install", ":env:"):
        for name, value in re.findall(rf"^{section}\.([a-z-]+)=(.*)$", listed, re.M):
            settings[name] = ast.literal_eval(value)
    return settings


def resolver(folder: Path) -> Resolver:
    """Make an environment in an empty folder and install the newest uv.

    And the newest pip: that of Python 3.11 does not report licence expressions.
    """
    subprocess.run((sys.executable, "-m", "venv", folder), check=True)
    python = folder / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    install = (*pip, "install", "--quiet", "--upgrade", "--only-binary", ":all:")
    subprocess.run((*install, "pip", "uv"), check=True)
    listed = subprocess.run((*pip, "config", "list"), stdout=subprocess.PIPE, text=True, check=True)
    settings = pip_settings(listed.stdout)
    # Otherwise uv looks for an interpreter of --python-version at an address of its own.
    environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never"}
    for option, variable in PIP_TO_UV.items():
        if option in settings:
            environment[variable] = " ".join(settings[option].split())
    return Resolver(python, environment)


def stated() -> dict[str, Any]:
    """What ``pyproject.toml`` says."""
    return tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())


def requirements() -> dict[str, list[str]]:
    """Who asks for packages of the locks -> the requirements that are stated for it."""
    everything = stated()
    extras = everything["project"]["optional-dependencies"]
    return {
        "lrdyn": everything["project"]["dependencies"],
        **{name: extras[name] for name in EXTRAS},
        "build": everything["build-system"]["requires"],
    }


def releases(text: str) -> dict[str, str]:
    """Name -> version of every package in a lock."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\\n]+)", text, re.M))


def relocked(tools: Resolver, path: Path, wanted: Sequence[str], python: str, *words: str) -> str:
    """The text of a lock, with its releases where they still fit and all hashes asked for again."""
    with tempfile.TemporaryDirectory() as folder:
        # uv keeps the releases of the file that it is to write, and would keep their hashes, too.
        output = Path(folder, path.name)
        pins = releases(path.read_text()) if path.exists() else {}
        output.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        tools.compile(wanted, python, "--generate-hashes", "--output-file", output, *words)
        return output.read_text()


def compilers(tools: Resolver, lock: str) -> list[str]:
    """What the extra ``aot`` adds to a lock, whose JAX it is made for."""
    held = releases(lock)
    wanted = stated()["project"]["optional-dependencies"]["aot"]
    same = [f"{name}=={held[name]}" for name in ("jax", "jaxlib")]
    found = releases(tools.compile([*wanted, *same], "3.11"))
    return [f"{name}=={version}" for name, version in found.items() if name not in held]


def site_builders(tools: Resolver, locks: Mapping[str, str], folder: Path) -> list[str]:
    """What the extra ``docs`` adds to the locks, beside which it is installed."""
    pins = folder / "pins.txt"
    held = releases(locks["lock-py311.txt"])
    pins.write_text("".join(f"{name}=={version}\n" for name, version in held.items()))
    wanted = stated()["project"]["optional-dependencies"]["docs"]
    found = releases(tools.compile(wanted, "3.11", "--constraints", pins))
    everywhere = set.intersection(*(set(releases(locks[name])) for name in OLDEST_PYTHON))
    return [f"{name}=={version}" for name, version in found.items() if name not in everywhere]


def release_tools(lock: str) -> list[str]:
    """What the extra ``release`` asks for, and what builds the wheel, as a lock has it."""
    everything, held = stated(), releases(lock)
    builders = [re.split("[^a-z0-9-]", one)[0] for one in everything["build-system"]["requires"]]
    return [
        *everything["project"]["optional-dependencies"]["release"],
        *(f"{name}=={held[name]}" for name in builders),
    ]


def main(words: list[str]) -> int:
    """Write every lock, or none."""
    wanted = [requirement for asked in requirements().values() for requirement in asked]
    (encoder,) = releases((FOLDER / ENCODER).read_text())
    texts = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            tools = resolver(Path(folder, "tools"))
            for name, python in OLDEST_PYTHON.items():
                texts[name] = relocked(tools, FOLDER / name, wanted, python, *words)
            # Its version is part of what the tests know of it: no upgrade.
            texts[ENCODER] = relocked(tools, FOLDER / ENCODER, [encoder], "3.11", "--no-deps")
            added = compilers(tools, texts["lock-py311.txt"])
            texts[AHEAD] = relocked(tools, Path(folder, AHEAD), added, "3.11", "--no-deps")
            added = site_builders(tools, texts, Path(folder))
            texts[SITE] = relocked(tools, Path(folder, SITE), added, "3.11", "--no-deps")
            wanted = release_tools(texts["lock-py311.txt"])
            texts[RELEASE] = relocked(tools, FOLDER / RELEASE, wanted, "3.11", *words)
        except subprocess.CalledProcessError as error:
            print(
                f"lock: {Path(error.cmd[0]).name} ended with {error.returncode}; "
                "no lock was changed",
                file=sys.stderr,
            )
            return 3
    for name, text in texts.items():
        path = FOLDER / name
        changed = not path.exists() or path.read_text() != text
        path.write_text(text)
        print(f"lock: requirements/{name} {'written' if changed else 'is as it was'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
