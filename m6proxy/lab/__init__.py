"""The lab: two sites with two providers each, a legacy site and a name server, in namespaces.

``topology`` says what there is; ``plan`` renders it for iproute2 and ip6tables; ``build``
applies that and takes it away again; ``zones`` and ``nameserver`` give it names; ``faults``
breaks its providers. ``story``, ``sessions``, ``demo``, ``timeline`` and ``plot`` are the
demonstration that runs in it. Source: DESIGN §7.
"""
