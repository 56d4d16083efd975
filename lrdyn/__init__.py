"""Low-rank learning dynamics: theorems, checked on the code that runs.

What a reader of the README types is here; the rest is reached by topic, as in
``lrdyn.subspace.blocks``.
"""

from lrdyn import interrupts

with interrupts.importing():
    from lrdyn import adapters as adapters
    from lrdyn import autoencoding as autoencoding
    from lrdyn import classifier as classifier
    from lrdyn import compression as compression
    from lrdyn import convergence as convergence
    from lrdyn import descent as descent
    from lrdyn import dropout as dropout
    from lrdyn import entries as entries
    from lrdyn import factorization as factorization
    from lrdyn import gradient_rank as gradient_rank
    from lrdyn import initialization as initialization
    from lrdyn import landscape as landscape
    from lrdyn import masking as masking
    from lrdyn import recovery as recovery
    from lrdyn import shrinkage as shrinkage
    from lrdyn import spectra as spectra
    from lrdyn import subspace as subspace
    from lrdyn import theorem as theorem
    from lrdyn.adapters.descent import low_rank_descent as low_rank_descent
    from lrdyn.adapters.galore import FULL as FULL
    from lrdyn.adapters.galore import GALORE as GALORE
    from lrdyn.adapters.lora import LORA as LORA
    from lrdyn.adapters.relora import RELORA as RELORA
    from lrdyn.adapters.relora import RELORA_FROZEN as RELORA_FROZEN
    from lrdyn.claims import relative_difference as relative_difference
    from lrdyn.claims import tolerance as tolerance
    from lrdyn.condition import with_condition as with_condition
    from lrdyn.descent import Trajectory as Trajectory
    from lrdyn.descent import gradient_descent as gradient_descent
    from lrdyn.descent import recorded_steps as recorded_steps
    from lrdyn.descent import simulate as simulate
    from lrdyn.engine.points import listed as listed
    from lrdyn.engine.points import product as product
    from lrdyn.engine.points import sampled as sampled
    from lrdyn.engine.points import zipped as zipped
    from lrdyn.engine.sweep import sweep as sweep
    from lrdyn.engine.verify import verify as verify
    from lrdyn.factorization import end_to_end as end_to_end
    from lrdyn.factorization import factorization_loss as factorization_loss
    from lrdyn.initialization import gaussian_layers as gaussian_layers
    from lrdyn.initialization import low_rank_target as low_rank_target
    from lrdyn.initialization import orthogonal_layers as orthogonal_layers
    from lrdyn.initialization import spaced_singular_values as spaced_singular_values
    from lrdyn.initialization import truncated_gaussian_target as truncated_gaussian_target
    from lrdyn.spectra import effective_rank as effective_rank
    from lrdyn.spectra import numerical_rank as numerical_rank
    from lrdyn.spectra import singular_values as singular_values
    from lrdyn.subspace import expand as expand
    from lrdyn.subspace import frame as frame
    from lrdyn.subspace import reduced_dynamics as reduced_dynamics
    from lrdyn.subspace import reduced_target as reduced_target
    from lrdyn.subspace import rho as rho
    from lrdyn.theorem import FRACTION as FRACTION
    from lrdyn.theorem import NON_NEGATIVE as NON_NEGATIVE
    from lrdyn.theorem import POSITIVE as POSITIVE
    from lrdyn.theorem import Claim as Claim
    from lrdyn.theorem import Control as Control
    from lrdyn.theorem import Experiment as Experiment
    from lrdyn.theorem import Flag as Flag
    from lrdyn.theorem import Outcome as Outcome
    from lrdyn.theorem import Scenario as Scenario
    from lrdyn.theorem import Theorem as Theorem
    from lrdyn.theorem import at_least as at_least
    from lrdyn.theorem import one_of as one_of
