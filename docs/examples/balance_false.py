"""A false conjecture: gradient descent conserves the balance of neighbouring layers, exactly."""

import dataclasses
import sys

from balance import FACTORIZATION, FLAGS, conserved

from lrdyn import cli
from lrdyn.theorem import Theorem

CONJECTURE = dataclasses.replace(
    FACTORIZATION,
    predict=conserved,
    claims=(
        dataclasses.replace(
            FACTORIZATION.claims[0], statement="W_{l+1}^T W_{l+1} - W_l W_l^T is the same at all t"
        ),
    ),
    controls=FACTORIZATION.controls[:2],
)

BALANCE_FALSE = Theorem(
    "balance_false",
    "gradient descent conserves the balance of neighbouring layers",
    tuple(dataclasses.replace(f, quick=f.quick[:1]) if f.name == "learning_rate" else f
          for f in FLAGS),
    (CONJECTURE,),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(cli.main(BALANCE_FALSE))
