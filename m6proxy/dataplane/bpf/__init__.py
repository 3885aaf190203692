"""The data plane in the kernel: a loader for eBPF objects that needs no compiler and no library.

- ``elf`` and ``btf`` read what clang wrote; ``syscall`` is bpf(2) and nothing more;
- ``maps`` and ``programs`` are the two things of the kernel that everything else handles;
- ``load`` makes both out of an object, ``takeover`` in the place of a predecessor's;
- ``pins`` and ``links`` are what outlives us; ``ring`` reads what the kernel tells.
"""
