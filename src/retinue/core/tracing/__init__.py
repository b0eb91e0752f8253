"""What becomes of a frame, told in the words of the pipeline: hop by hop, where it ends, and why.

`question` makes the frame that is asked about, `places` says where it comes in, `trace` follows it, `ends`
and `why` say what has come of it.
"""

from retinue.core.tracing.ends import Ending, Fate
from retinue.core.tracing.places import Place, joined, place, place_named, place_of_nic
from retinue.core.tracing.question import Kind, Question, TraceError, frame_of
from retinue.core.tracing.trace import Trace, Ways, follow, tell, trace
from retinue.core.tracing.words import Entry

__all__ = [
    "Ending",
    "Entry",
    "Fate",
    "Kind",
    "Place",
    "Question",
    "Trace",
    "TraceError",
    "Ways",
    "follow",
    "frame_of",
    "joined",
    "place",
    "place_named",
    "place_of_nic",
    "tell",
    "trace",
]
