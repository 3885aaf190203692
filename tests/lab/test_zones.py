"""The zone files, read back by dnspython: what the lab's name server will say."""

from __future__ import annotations

from pathlib import Path

import dns.name
import dns.rdatatype
import dns.zone

from m6proxy.discovery.codec import parse_svcb, svcb_zone_line
from m6proxy.lab import zones
from m6proxy.lab.topology import ALPHA, BETA, GAMMA


def _zone(name: str) -> dns.zone.Zone:
    text = zones.zone_files(svcb_zone_line)[name]
    return dns.zone.from_text(text, origin=f"{name}.", relativize=False)


def test_each_host_has_its_one_address() -> None:
    zone = _zone("beta.example")
    addresses = {
        str(name): [rdata.address for rdata in rdataset]
        for name, rdataset in zone.iterate_rdatasets(dns.rdatatype.AAAA)
    }
    assert addresses == {
        "ns.beta.example.": ["2001:db8:ff::53"],
        "b1.beta.example.": ["2001:db8:b1:1::10"],
        "b2.beta.example.": ["2001:db8:b1:1::20"],
    }


def test_capable_hosts_publish_the_prefixes_of_their_site() -> None:
    found = _zone("alpha.example").find_rdataset("_m6proxy.a1.alpha.example.", "SVCB")
    assert parse_svcb(found).capability == zones.capability(ALPHA)


def test_the_legacy_site_publishes_nothing() -> None:
    assert "_m6proxy" not in zones.forward_zone(GAMMA, svcb_zone_line)


def test_reverse_zones_of_both_prefixes_name_the_hosts() -> None:
    zone = _zone("2.b.0.0.8.b.d.0.1.0.0.2.ip6.arpa")
    pointers = {
        str(rdata.target): str(name)
        for name, rdataset in zone.iterate_rdatasets(dns.rdatatype.PTR)
        for rdata in rdataset
    }
    assert set(pointers) == {"b1.beta.example.", "b2.beta.example."}
    assert pointers["b2.beta.example."].startswith("0.2.0.0.")
    assert zones.reverse_name(BETA.uplinks[0].prefix) == "1.b.0.0.8.b.d.0.1.0.0.2.ip6.arpa"


def test_knotd_writes_only_into_its_folder() -> None:
    text = zones.knot_config(Path("/nowhere/knot"), ["alpha.example"])
    assert "rundir: /nowhere/knot\n" in text
    assert "storage: /nowhere/knot/db\n" in text
    assert "listen: 2001:db8:ff::53@53\n" in text
