"""What really happened in the stories: a schedule that asks for it proves nothing yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum, unique
from typing import TypeAlias

from m6proxy.proof.judge import Proof
from m6proxy.shim.context import Context
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import Report, What
from m6proxy.shim.transitions import Input, State
from m6proxy.wire.message import UpdateRequest, parse_message
from m6proxy.wire.options import LocatorDelta, LocatorList, ParkTime, Scope, find
from tests.harness.simulator import wire


@unique
class Event(StrEnum):
    """What the stories must contain; each is counted where it takes effect."""

    # the network
    LOST = "a packet lost at random"
    DELAYED = "a packet late by its provider's delay"
    JITTERED = "a packet late by chance"
    REORDERED = "a packet that overtook an earlier one of the same direction"
    DOUBLED = "a packet that came twice"
    CUT_OUT = "a packet lost in a cut on its way out"
    CUT_IN = "a packet lost in a cut on its way in"
    ONE_WAY = "a provider that drops one direction only, met by a packet"
    TOLD = "a router that told the sender of a cut by ICMPv6"
    DRIFT = "two clocks that came a second apart"
    # the sites
    STATE_LOST = "a restart that lost living contexts"
    ORDERLY = "a restart that was told to the peers"
    UPLINK_LOST = "a true uplink event"
    UPLINK_LIE = "an uplink event without a failure"
    DNS_SLOW = "an answer of DNS that took seconds"
    DNS_SILENT = "a question to a silent DNS"
    DNS_FOREIGN = "an answer that names another site's prefixes"
    PLAIN_SITE = "an I1 to a site without a shim"
    CROWD = "four sites or more, with three conversations or more"
    # how contexts begin
    BY_RECORD = "a peer known by its record"
    BY_MEMORY = "a peer seen before"
    BY_CONFIGURATION = "a peer that the operator named"
    BY_REPLY = "a peer that answered a Capability Request"
    BY_I1 = "a peer asked by the I1 itself"
    NO_CAPABILITY = "a peer found to have no shim"
    NO_SUPPORT = "a refusal by ICMPv6"
    E_FAILED = "an exchange that nobody answered"
    CROSSED = "an I2 that ended an exchange of one's own"
    HELD_FIRST = "a first packet held for its context"
    HELD_SENT = "a held packet that left over other locators"
    STARTED_ELSEWHERE = "a context established over other locators than its ULIDs"
    FORKED = "a packet that left by a fork"
    FORK_MOVED = "a fork re-homed"
    HASHED = "data to a locator proved by its hash"
    SHORTENED = "a locator list that did not fit"
    # how they live
    PAYLOAD_HEADER = "a packet with a payload header"
    TAG_OPTION = "a packet with its tag in an option"
    NO_TAG = "a re-homed packet that goes by its addresses alone"
    FLOW_LABEL = "a re-homed packet that goes by its flow label"
    FILTERED = "a packet dropped for its flow label or its option"
    MODE_LEFT = "a mode that is left since the path loses it"
    SILENCE = "a failure noticed"
    REHOMED = "a context re-homed"
    RETURNED = "a context gone back to a better pair"
    HINTED = "an indirect indication that started a test"
    UPDATE_WHOLE = "an Update with a whole list"
    UPDATE_DELTA = "an Update with a difference"
    TOLD_TOGETHER = "an Update about several contexts"
    RESYNCHRONISED = "a difference refused, and the whole list told"
    RECOVERED = "a context set up again after R1bis"
    CLOSED = "a Close acknowledged"
    PROVED_LATE = "locators proved after the exchange"
    # a site that goes away
    PARKED = "a context parked for a peer that is away"
    PARKED_TOGETHER = "a site that asks a peer to wait for several contexts"
    GRANTED = "a peer that says how long it waits"
    PARK_DROPPED = "a packet of a host dropped while an end is away"
    RESUMED = "a context taken up again"
    PARK_OVER = "a peer that was away for too long"
    AWAY_UNTOLD = "a site that went away and forgot it"
    # what TCP says
    UNANSWERED = "TCP that repeats itself and so starts a test"
    ADVISED = "a search ended by TCP's acknowledgement"


Census: TypeAlias = "Counter[Event]"

_CAPABLE = {
    "seen before": Event.BY_MEMORY,
    "configured": Event.BY_CONFIGURATION,
    "probing an unknown peer": Event.BY_I1,
}
_WHATS = {
    What.NOT_CAPABLE: Event.NO_CAPABILITY,
    What.SILENCE: Event.SILENCE,
    What.SHORTENED: Event.SHORTENED,
    What.PROVED: Event.PROVED_LATE,
    What.RESUMED: Event.RESUMED,
}
_STATES = {
    State.NO_SUPPORT.value: Event.NO_SUPPORT,
    State.E_FAILED.value: Event.E_FAILED,
}


def note_report(census: Census, report: Report, contexts: Sequence[Context]) -> None:
    """An engine says what happened; ``contexts`` are the pair's, with its forks."""
    match report.what:
        case What.CAPABLE if report.detail.startswith("replied"):
            census[Event.BY_REPLY] += 1
        case What.CAPABLE:
            census[_CAPABLE.get(report.detail, Event.BY_RECORD)] += 1
        case What.STATE:
            _note_state(census, report.detail)
        case What.UPDATED if report.detail.startswith("the peer has another list"):
            census[Event.RESYNCHRONISED] += 1
        case What.UPDATED if report.detail.endswith("on this path"):
            census[Event.MODE_LEFT] += 1
        case What.PARKED:
            granted = report.detail.startswith("the peer waits")
            census[Event.GRANTED if granted else Event.PARKED] += 1
        case What.REMOVED:
            census[Event.PARK_OVER] += report.detail == Input.PARK_OVER.value
        case What.HINT:
            census[Event.UNANSWERED] += report.detail.startswith("TCP")
        case What.ESTABLISHED:
            census[Event.STARTED_ELSEWHERE] += any(
                not context.fii
                and context.route != context.outbound_key
                and report.detail.endswith(f"{context.local_tag:012x}")
                for context in contexts
            )
        case What.REHOMED:
            census[Event.REHOMED] += 1
            census[Event.FORK_MOVED] += any(
                context.fii and context.rehomed_s and str(context.locators) == report.detail
                for context in contexts
            )
        case _ if report.what in _WHATS:
            census[_WHATS[report.what]] += 1


def note_sent(census: Census, packet: bytes) -> None:
    """A control message leaves."""
    kind = wire.type_of(packet)
    if kind == wire.CLOSE_ACK:
        census[Event.CLOSED] += 1
    elif kind == wire.UPDATE_REQUEST:
        message = parse_message(packet[40:])
        if isinstance(message, UpdateRequest):
            away = find(message.options, ParkTime) is not None
            if find(message.options, Scope) is not None:
                census[Event.PARKED_TOGETHER if away else Event.TOLD_TOGETHER] += 1
            elif find(message.options, LocatorDelta) is not None:
                census[Event.UPDATE_DELTA] += 1
            elif find(message.options, LocatorList) is not None:
                census[Event.UPDATE_WHOLE] += 1


def note_data(census: Census, context: Context, rewritten: bytes) -> None:
    """A packet leaves on a context's locators."""
    if rewritten[6] == wire.SHIM:
        census[Event.PAYLOAD_HEADER] += 1
    elif context.mode is DemuxMode.IDENTIFIER:
        census[Event.NO_TAG] += 1
    elif wire.flow_label(rewritten):
        census[Event.FLOW_LABEL] += 1
    elif context.mode is DemuxMode.DSTOPT:
        census[Event.TAG_OPTION] += 1
    if context.fii:
        census[Event.FORKED] += 1
    locator = context.peer_locator(rewritten[24:40])
    if locator is not None and locator.proof is Proof.HBA:
        census[Event.HASHED] += 1


def _note_state(census: Census, detail: str) -> None:
    before, _, rest = detail.partition(" -> ")
    after, _, cause = rest.partition(" (")
    if after in _STATES:
        census[_STATES[after]] += 1
    elif after == State.ESTABLISHED.value:
        if before == State.I2BIS_SENT.value:
            census[Event.RECOVERED] += 1
        elif before == State.I1_SENT.value and cause == "I2)":
            census[Event.CROSSED] += 1
