"""All probes for one configuration: what ``m6proxy check`` shows and ``run`` insists on."""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.query

from m6proxy.daemon.config import Config
from m6proxy.errors import SetupError
from m6proxy.steering.checks import (
    Finding,
    Kernel,
    Level,
    check_bridge_filter,
    check_forwarding,
    check_privileges,
    check_rules_features,
)


def check_system(config: Config) -> list[Finding]:
    """Look at privileges, kernel, interfaces and routes. Changes nothing; takes about 0.1 s."""
    privileges = check_privileges()
    findings = [privileges]
    if privileges.level is Level.OK:
        findings += check_rules_features()
    findings.append(check_forwarding())
    findings += check_bridge_filter((*config.lan, *(x.interface for x in config.uplinks)))
    kernel = Kernel()
    try:
        findings += [kernel.check_interface(name) for name in config.lan]
        for uplink in config.uplinks:
            found = kernel.check_interface(uplink.interface)
            findings.append(found)
            if found.level is not Level.OK:
                continue
            findings.append(kernel.check_gateway(uplink.interface, uplink.gateway))
            findings.append(
                kernel.check_source_route(
                    uplink.prefix, uplink.interface, managed=config.manage_routes
                )
            )
    finally:
        kernel.close()
    return findings


def require_system(config: Config) -> None:
    """Raise SetupError with one line about the first thing without which nothing can run."""
    for finding in check_system(config):
        if finding.essential and finding.level is Level.FAILURE:
            raise SetupError(str(finding))


def check_dns(config: Config) -> list[Finding]:
    """Ask each server for the site's SOA; takes up to the time-out for each that is silent.

    Silence is a warning only: without DNS plain traffic and known peers go on.
    """
    findings = []
    query = dns.message.make_query(config.site, "SOA")
    for server in config.dns.servers:
        what = f"name server {server}"
        try:
            dns.query.udp(query, server, timeout=config.dns.timeout_s, port=config.dns.port)
        except (OSError, dns.exception.DNSException) as error:
            silent = isinstance(error, dns.exception.Timeout)
            late = f"no answer within {config.dns.timeout_s:g} s by the ordinary route"
            why = late if silent else str(error)
            remedy = "no peer can be found unless it answers over an uplink, or another one does"
            findings.append(Finding(what, Level.WARNING, why, remedy))
        else:
            findings.append(Finding(what, Level.OK, "answers"))
    return findings
