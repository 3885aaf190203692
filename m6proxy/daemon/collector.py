"""How Python's cyclic garbage collector is set up for a process that holds 100,000 contexts.

The engine makes no reference cycles (``tests/shim/test_cycles.py``), so that all it drops is
given back at once. A full collection, which looks at everything, finds nothing and takes half
a second at 100,000 contexts, in which no packet passes. So none is made; what other parts
leave in cycles dies young, in collections of the two young generations.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG: Final = 1000
"""Objects made, less those that died, before the youngest generation is looked at."""
MIDDLE: Final = 5
"""Such looks before the middle one is: it holds some 5,000 objects, a few milliseconds."""
NO_FULL_COLLECTION: Final = 1_000_000_000


def set_up_collector() -> None:
    """Make full collections not happen by themselves, and young ones less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, NO_FULL_COLLECTION)
