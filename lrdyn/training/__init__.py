"""Training for minutes to hours: any optax optimiser on mini-batches, kept and continued."""

from lrdyn.training.batches import Batches as Batches
from lrdyn.training.keeping import FORGETFUL as FORGETFUL
from lrdyn.training.keeping import Keeper as Keeper
from lrdyn.training.loop import train as train
