"""Algorithm 1: GaLore, ReLoRA, LoRA and its relatives as values of one method, for any model.

A :class:`Method` says what is trained in the place of a matrix and where it starts. As a loop it is
:func:`low_rank_descent`; for a loop of your own :func:`galore` and :func:`relora` are optimisers in
optax's idiom, and :func:`init` and :func:`apply` put adapters on a model.
"""

from lrdyn.adapters.adapter import Adapter as Adapter
from lrdyn.adapters.adapter import DeepFactors as DeepFactors
from lrdyn.adapters.adapter import DirectedFactors as DirectedFactors
from lrdyn.adapters.adapter import Factors as Factors
from lrdyn.adapters.adapter import Shift as Shift
from lrdyn.adapters.adapter import labels as labels
from lrdyn.adapters.algorithm_1 import Method as Method
from lrdyn.adapters.algorithm_1 import SplitParts as SplitParts
from lrdyn.adapters.algorithm_1 import WeightParts as WeightParts
from lrdyn.adapters.algorithm_1 import algorithm1 as algorithm1
from lrdyn.adapters.algorithm_1 import layered as layered
from lrdyn.adapters.algorithm_1 import low_rank_descent as low_rank_descent
from lrdyn.adapters.algorithm_1 import merged as merged
from lrdyn.adapters.array_like import Adapted as Adapted
from lrdyn.adapters.decay import in_coordinates as in_coordinates
from lrdyn.adapters.memory import Footprint as Footprint
from lrdyn.adapters.memory import adam_state as adam_state
from lrdyn.adapters.memory import measured_memory as measured_memory
from lrdyn.adapters.memory import model_bytes as model_bytes
from lrdyn.adapters.memory import weights_held as weights_held
from lrdyn.adapters.methods import DORA as DORA
from lrdyn.adapters.methods import FULL as FULL
from lrdyn.adapters.methods import GALORE as GALORE
from lrdyn.adapters.methods import LORA as LORA
from lrdyn.adapters.methods import LORA_FA as LORA_FA
from lrdyn.adapters.methods import PISSA as PISSA
from lrdyn.adapters.methods import RELORA as RELORA
from lrdyn.adapters.methods import RELORA_FROZEN as RELORA_FROZEN
from lrdyn.adapters.methods import by_label as by_label
from lrdyn.adapters.methods import compressed_deep_lora as compressed_deep_lora
from lrdyn.adapters.methods import deep_lora as deep_lora
from lrdyn.adapters.methods import jagged as jagged
from lrdyn.adapters.methods import lora as lora
from lrdyn.adapters.methods import lora_plus as lora_plus
from lrdyn.adapters.methods import over_rank as over_rank
from lrdyn.adapters.methods import over_root as over_root
from lrdyn.adapters.model import apply as apply
from lrdyn.adapters.model import choose_by_path as choose_by_path
from lrdyn.adapters.model import count as count
from lrdyn.adapters.model import init as init
from lrdyn.adapters.model import joined as joined
from lrdyn.adapters.model import merge as merge
from lrdyn.adapters.model import rebase as rebase
from lrdyn.adapters.model import split as split
from lrdyn.adapters.model import unmerge as unmerge
from lrdyn.adapters.projectors import Identity as Identity
from lrdyn.adapters.projectors import LinearMap as LinearMap
from lrdyn.adapters.projectors import Parametrization as Parametrization
from lrdyn.adapters.projectors import Projector as Projector
from lrdyn.adapters.projectors import choose_projectors as choose_projectors
from lrdyn.adapters.projectors import draw_projectors as draw_projectors
from lrdyn.adapters.projectors import top_singular_projector as top_singular_projector
from lrdyn.adapters.state import reset as reset
from lrdyn.adapters.state import transport_moments as transport_moments
from lrdyn.adapters.transformations import LowRankState as LowRankState
from lrdyn.adapters.transformations import galore as galore
from lrdyn.adapters.transformations import relora as relora
