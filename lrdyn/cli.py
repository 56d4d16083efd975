"""What a script calls: process-wide settings, and the command line of a theorem of one's own.

Example:
    >>> from lrdyn.registry import theorem
    >>> parse(theorem("theorem2"), ["--dim", "6"]).run.settings["dim"]
    (6,)
"""

from lrdyn.commands.ending import run as run
from lrdyn.commands.verify import main as main
from lrdyn.commands.verify import parse as parse
from lrdyn.engine.configuration import BadInput as BadInput
from lrdyn.engine.process import setup as setup
