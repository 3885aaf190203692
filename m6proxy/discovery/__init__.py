"""Who the peer is and whether its site has a shim, as far as DNS can say. Pure.

``capability`` is what a site publishes, ``codec`` how it stands in a zone. ``names_book``
learns names from passing DNS answers, which ``overheard`` reads. ``plan`` says what to ask
next, ``answer`` reads what came, ``cache`` says how long it holds. ``daemon/resolver`` asks.
"""
