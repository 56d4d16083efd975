"""What a script calls: process-wide settings, and the command line of a theorem of one's own."""

from lrdyn.commands.ending import run as run
from lrdyn.commands.verify import main as main
from lrdyn.commands.verify import parse as parse
from lrdyn.verification.machine.process import setup as setup
from lrdyn.verification.running.configuration import BadInput as BadInput
