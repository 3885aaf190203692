"""m6proxy keeps the sessions of ordinary IPv6 hosts alive when their site loses a provider."""

__version__ = "0.1.0"
