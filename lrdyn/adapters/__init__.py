"""Algorithm 1: GaLore, ReLoRA and LoRA as values of one method, for the weights of any network."""

from lrdyn.adapters.descent import algorithm1 as algorithm1
from lrdyn.adapters.descent import low_rank_descent as low_rank_descent
from lrdyn.adapters.galore import FULL as FULL
from lrdyn.adapters.galore import GALORE as GALORE
from lrdyn.adapters.lora import LORA as LORA
from lrdyn.adapters.maps import Identity as Identity
from lrdyn.adapters.maps import LinearMap as LinearMap
from lrdyn.adapters.maps import Projector as Projector
from lrdyn.adapters.maps import choose_projectors as choose_projectors
from lrdyn.adapters.maps import draw_projectors as draw_projectors
from lrdyn.adapters.maps import top_singular_projector as top_singular_projector
from lrdyn.adapters.memory import Footprint as Footprint
from lrdyn.adapters.memory import adam_state as adam_state
from lrdyn.adapters.memory import measured_memory as measured_memory
from lrdyn.adapters.memory import weights_held as weights_held
from lrdyn.adapters.method import Method as Method
from lrdyn.adapters.method import Parts as Parts
from lrdyn.adapters.method import Split as Split
from lrdyn.adapters.method import layered as layered
from lrdyn.adapters.method import merged as merged
from lrdyn.adapters.relora import RELORA as RELORA
from lrdyn.adapters.relora import RELORA_FROZEN as RELORA_FROZEN
from lrdyn.adapters.state import transport_moments as transport_moments
