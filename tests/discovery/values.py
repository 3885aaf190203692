"""Values that the tests of discovery share."""

from __future__ import annotations

from m6proxy.discovery.capability import Capability, PrefixLocator
from m6proxy.names import Prefix

ALPHA = Capability(
    site="alpha.example",
    prefixes=(
        PrefixLocator(Prefix.parse("2001:db8:a1::/48"), 1),
        PrefixLocator(Prefix.parse("2001:db8:a2::/48"), 2),
    ),
)
ALPHA_TEXT = "v=1+f=a+s=alpha.example+p=2001:db8:a1::/48@1+p=2001:db8:a2::/48@2"
