"""``python -m lrdyn.commands.convert IN.npz OUT.npz``: convert JPEGs to a CIFAR-10 archive."""

import sys
from collections.abc import Sequence

from lrdyn.commands.arguments import Parser
from lrdyn.commands.ending import Fault, Status, run
from lrdyn.data.convert import convert
from lrdyn.system.printer import say
from lrdyn.verification.running.configuration import BadInput


def main(argv: Sequence[str] | None = None) -> Status:
    """Run the command on these arguments, or those of the process; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return run("convert", lambda: _command(words), own_process=argv is None)


def _command(words: Sequence[str]) -> None:
    parser = Parser("lrdyn.commands.convert", "JPEGs to cifar10.npz")
    parser.add_argument("source", metavar="IN.npz", help="archive of JPEGs: buf, off, y")
    parser.add_argument("target", metavar="OUT.npz", help="file to write, such as cifar10.npz")
    options = parser.parse(words)
    try:
        say(str(convert(options.source, options.target)))
    except (ValueError, ImportError) as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise Fault(f"{error.filename}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
