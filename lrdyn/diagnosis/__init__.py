"""How low-rank the updates of anyone's training are: while it runs, or between two checkpoints.

:func:`lrdyn.watch` looks from a loop of your own, :func:`lrdyn.diagnose` at weights before and
after it, and :func:`extract` makes an adapter of the difference.
"""

from lrdyn.diagnosis.before_training import GradientReport as GradientReport
from lrdyn.diagnosis.before_training import MatrixGradients as MatrixGradients
from lrdyn.diagnosis.before_training import gradients as gradients
from lrdyn.diagnosis.combining import Combination as Combination
from lrdyn.diagnosis.combining import combine as combine
from lrdyn.diagnosis.extraction import Extraction as Extraction
from lrdyn.diagnosis.extraction import extract as extract
from lrdyn.diagnosis.planning import Plan as Plan
from lrdyn.diagnosis.planning import plan as plan
from lrdyn.diagnosis.report import Diagnosis as Diagnosis
from lrdyn.diagnosis.report import diagnose as diagnose
from lrdyn.diagnosis.updates import MatrixUpdate as MatrixUpdate
from lrdyn.diagnosis.watcher import Watcher as Watcher
from lrdyn.diagnosis.watcher import watch as watch
