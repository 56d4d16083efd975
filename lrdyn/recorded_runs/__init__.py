"""Runs that somebody else trained and recorded, judged by the claims of a theorem.

``records`` and ``files`` read what was recorded, ``cases`` makes of it the case of a scenario,
whose prediction and claims stay as they are, and ``judge`` has it judged. ``pictures`` draws.
"""

from lrdyn.recorded_runs.judge import JUDGED as JUDGED
from lrdyn.recorded_runs.judge import RecordedRun as RecordedRun
from lrdyn.recorded_runs.judge import judge_run as judge_run
from lrdyn.recorded_runs.records import Records as Records
from lrdyn.recorded_runs.records import records_of as records_of
