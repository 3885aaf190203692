"""One packet, three executors: forward.py, the programs in trial runs, the programs on the wire."""
