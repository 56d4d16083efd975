"""Drawing: figures of one's own arrays in the style of this package, verdicts, and tables.

``style``, ``panels``, ``band``, ``spectrum``, ``overlay``, ``animate`` and ``save`` draw whatever
arrays there are; a ``Figure`` or a ``Table`` is data that ``lrdyn figures`` draws and compares with
what is committed. Colours and keys are in ``plotting``. Matplotlib loads with the first picture.
"""

from lrdyn.figures.curves import band as band
from lrdyn.figures.curves import overlay as overlay
from lrdyn.figures.curves import spectrum as spectrum
from lrdyn.figures.exhibits import Figure as Figure
from lrdyn.figures.exhibits import Table as Table
from lrdyn.figures.moving import animate as animate
from lrdyn.figures.plotting import panels as panels
from lrdyn.figures.plotting import save as save
from lrdyn.figures.plotting import style as style
