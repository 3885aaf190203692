"""The one door to the core: bytes, events and ``now`` in; verdicts and effects out.

``handle_outbound`` and ``handle_inbound`` see every packet, so they stand first and do the
usual case in place: a packet of a context that carries, with nothing to change in its
timers. Everything else leaves for the function that knows about it. The order inside each
of them is the order in which a packet is sorted:

outbound  1 carrying context?   2 timers   3 on its ULIDs: accept   4 fits?   5 rewrite
          1' count for the establishment policy, accept
inbound   0 flow label, or addresses alone, of a context, where any are expected: restore
          1 shim header or tag option: restore, or take the control message
          2 ICMPv6 error: translate      3 DNS answer: learn
          4 carrying context: timers     5 nobody's address: drop
          6 count for the policy; accept
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

from m6proxy.discovery.capability import NameData
from m6proxy.errors import MalformedMessage, PeerViolation
from m6proxy.names import TAG_MASK, LocatorPair, UlidPair
from m6proxy.reasons import Reason
from m6proxy.shim import (
    activity,
    adopt,
    close,
    control,
    detect,
    establish,
    forks,
    forward,
    hints,
    icmp,
    memo,
    outward,
    park,
    peerset,
    reap,
    startup,
    trial,
    update,
)
from m6proxy.shim.adopt import NO_MEMOS, LeftContext
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core, ShimSettings
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import AskCapability, Effect, LearnNames, SendPacket, What
from m6proxy.shim.entropy import Entropy
from m6proxy.shim.locators import Uplink
from m6proxy.shim.memo import PairMemo
from m6proxy.shim.park import Away
from m6proxy.shim.pending import PendingProofs
from m6proxy.shim.policy import Traffic
from m6proxy.shim.slots import ReadActivity
from m6proxy.shim.sweep import Sweep
from m6proxy.shim.timers import NEVER
from m6proxy.shim.transitions import REMEMBERS, Input, State, legal
from m6proxy.shim.trial import Outcome
from m6proxy.shim.verdict import CONSUMED, Verdict
from m6proxy.wire.dstopt import find_tag_option, option_tag
from m6proxy.wire.ipv6 import HEADER_OCTETS, NEXT_SHIM, NEXT_UDP, Walk, find_shim, upper_layer

_SPECIAL: Final = forward.CHAINED | {NEXT_SHIM, NEXT_UDP, 58}
"""Next headers of inbound packets that need a second look."""
_ESTABLISHED: Final = State.ESTABLISHED
"""The usual state, compared first: hashing an Enum costs more than finding the context."""
_DNS_PORT: Final = (53).to_bytes(2)
_PLAIN_PLACE: Final = Walk(6, HEADER_OCTETS, NEXT_SHIM)
_ASK_AGAIN_S: Final = 30.0
EXPIRED_AT_ONCE: Final = 64
"""Contexts whose timers are seen to in one call, some milliseconds of work."""


class Engine:
    """The protocol for one site. Not thread-safe; time never runs backwards."""

    def __init__(
        self, settings: ShimSettings, entropy: Entropy, read_activity: ReadActivity | None = None
    ) -> None:
        """``read_activity`` is of a data plane in the kernel: what we do not see, it counts."""
        self._use(Core(settings, entropy, read_activity))

    def _use(self, core: Core) -> None:
        self._core = core
        self._pending = PendingProofs()
        self._sweep = Sweep()
        self._by_outbound = self._core.contexts.by_outbound
        self._by_forked = self._core.contexts.by_forked
        self._by_parked = self._core.contexts.by_parked
        self._by_inbound = self._core.contexts.by_inbound
        self._by_tag = self._core.contexts.by_tag
        self._by_short_tag = self._core.contexts.by_short_tag
        self._takes_options = core.settings.asks_for(DemuxMode.DSTOPT)
        self._by_label = self._core.contexts.by_label
        self._expected_labels = self._core.contexts.expected_labels
        self._by_sent_label = self._core.contexts.by_sent_label
        self._by_untagged = self._core.contexts.by_untagged
        self._is_locator_only = self._core.local_sets.is_locator_only

    # --- packets ---------------------------------------------------------------------

    def handle_outbound(self, packet: bytes, now: float) -> Verdict:
        """Decide about a packet from the LAN; its source is in the site's prefixes."""
        context = self._by_outbound.get(packet[8:40])
        if context is None:
            context = self._sorted(packet) if self._by_forked else None
            if context is None:
                return self._outbound_miss(packet, now)
        if context.flow is not None:
            activity.look(self._core, context, now)
            activity.hold(context, packet, now)
        context.packets_out += 1
        context.octets_out += len(packet)
        context.last_traffic_s = now
        if context.send_due_s == NEVER:
            reap.payload_out(self._core, context, packet, now)
        if context.wire_addresses is None:
            return outward.unmistaken(self._core, packet) if self._by_sent_label else None
        return outward.rewrite(self._core, context, packet, now)

    def handle_inbound(self, packet: bytes, now: float) -> Verdict:
        """Decide about a packet from an uplink to one of the site's prefixes."""
        octets = len(packet)
        if octets < HEADER_OCTETS:
            return self._core.drop(Reason.TRUNCATED)
        if self._expected_labels:
            verdict, final = self._inbound_labelled(self._expected_labels, packet, now)
            if final:
                return verdict
        if self._by_untagged and packet[8:40] in self._by_untagged:
            verdict, final = self._inbound_untagged(packet, now)
            if final:
                return verdict
        if packet[6] in _SPECIAL:
            if packet[6] == NEXT_SHIM and octets >= 48:
                if packet[42] & 0x80:
                    return self._restore(packet, _PLAIN_PLACE, now)
                if control.take_keepalive(self._core, packet, now):
                    return CONSUMED
            verdict, final = self._inbound_special(packet, now)
            if final:
                return verdict
        context = self._by_inbound.get(packet[8:40])
        if context is None:
            if self._by_label:
                verdict, final = self._inbound_labelled(self._by_label, packet, now)
                if final:
                    return verdict
            if self._is_locator_only(packet[24:40]):
                return control.nobodys(self._core, packet, now)
            key = packet[24:40] + packet[8:24]
            if key in self._by_parked:
                park.handle_packet(self._core, self._by_parked[key], now)
                return None
            if self._core.accounts.count(key, packet, outbound=False, now=now):
                self._want_context(key, now)
            return None
        if context.flow is not None:
            activity.look(self._core, context, now)
        context.packets_in += 1
        context.octets_in += octets
        context.last_traffic_s = now
        if context.send_due_s or not context.keepalive_due_s:
            if context.wire_label:
                hints.handle_plain(self._core, context, now)
            reap.payload_in(self._core, context, packet, now)
        return None

    # --- time and answers --------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When ``handle_timer`` must be called at the latest, or None."""
        core = self._core
        due_s = core.timers.next_deadline()
        for other_s in (
            core.inquiries.next_deadline_s(),
            core.first_packets.next_deadline_s(),
            self._sweep.next_deadline_s(core.pace.free_s),
            core.away_until_s or None,
        ):
            if other_s is not None and (due_s is None or other_s < due_s):
                due_s = other_s
        return due_s

    def handle_timer(self, now: float) -> None:
        """Expire what is due, each context once, but not more than packets can wait for.

        When there is more, ``next_deadline`` is past already.
        """
        core = self._core
        detect.expire(core, now)
        self._sweep.expire(core, now)
        if core.away_until_s and now >= core.away_until_s:
            park.end(core, now)
        idle_s, arm = core.settings.idle_s, core.timers.arm
        for context in core.timers.take_due(now, EXPIRED_AT_ONCE):
            if context.flow is not None:
                activity.look(core, context, now)
            due_s = context.next_deadline_s(idle_s)
            if due_s > now:
                arm(context, due_s)  # what it should have woken for was called off, or put off
                continue
            if context.handshake is not None or context.holddown_due_s:
                establish.expire(core, context, now)
            if context.closing is not None:
                close.expire(core, context, now)
            if not context.carries:
                if context.state is not State.IDLE:
                    core.rearm(context)
                continue
            if context.parking is not None:
                park.expire(core, context, now)
                continue
            if now >= context.last_traffic_s + core.settings.idle_s and not forks.is_used(
                core, context, now
            ):
                close.end_idle(core, context, now)
                continue
            reap.expire(core, context, now)
            update.expire(core, context, now)
            core.rearm(context)
        self._release(now)

    def handle_activity(self, slot: int, now: float) -> None:
        """The kernel moved a packet of this slot after silence; an unknown slot is nothing."""
        context = self._core.slots and self._core.slots.by_slot.get(slot)
        if context:
            activity.look(self._core, context, now)

    def handle_all_activity(self, now: float) -> None:
        """Look at every slot: the kernel's reports were lost, or people want to see counters."""
        if self._core.slots is not None:
            for context in tuple(self._core.slots.by_slot.values()):
                activity.look(self._core, context, now)

    def adopt(
        self, left: Iterable[LeftContext], now: float, memos: Mapping[bytes, PairMemo] = NO_MEMOS
    ) -> int:
        """Take over what a predecessor left in the kernel, and remembered; returns how many."""
        adopted = adopt.adopt(self._core, left, now, memos)
        self._sweep.begin(adopted, now, tells=True)
        return len(adopted)

    def memo_of(self, pair: UlidPair) -> PairMemo | None:
        """What a successor has to know of a pair beside what the kernel has; None: nothing."""
        return memo.memo_of(self._core, pair.local + pair.peer)

    def handle_ripe(self, pair: UlidPair, traffic: Traffic, now: float) -> None:
        """The kernel counted traffic of a pair without a context that crossed a threshold."""
        core = self._core
        key = pair.local + pair.peer
        if core.contexts.by_pair(key) is None and core.accounts.take(
            key, traffic, now, dead=core.local_sets.is_down(pair.local)
        ):
            self._want_context(key, now)

    def take_effects(self) -> list[Effect]:
        """Hand over what is to be done, in order, and forget it."""
        return self._core.take_effects()

    @property
    def outbox(self) -> Sequence[Effect]:
        """Where effects wait, always the same object: empty when there is nothing to take."""
        return self._core.effects

    def handle_capability(
        self, pair: UlidPair, data: NameData | None, local_name: str | None, now: float
    ) -> None:
        """The answer to AskCapability: what DNS says of the peer, and our host's own name."""
        detect.decide(self._core, pair, data, local_name, now)
        self._release(now)

    def handle_proof(
        self, pair: UlidPair, data: NameData | None, local_name: str | None, now: float
    ) -> None:
        """The answer to AskProof: what DNS says of the name that the peer claims."""
        core = self._core
        key = pair.local + pair.peer
        for fii, message, route in self._pending.take(key, now):
            try:
                claimed = establish.claimed(message, data)
                establish.complete(core, key, fii, message, route, claimed, local_name, now)
            except PeerViolation as violation:
                core.drop(violation.reason)
        self._release(now)
        for context in core.contexts.all_of_pair(key):
            if not context.carries:
                continue
            context.local_name = context.local_name or local_name
            if data is not None and data.name == context.peer_name:
                peerset.adopt_proof(core, context, data)
                memo.note(core, context)
                reap.widen(core, context, now)
                reap.test_stand_in(core, context, now)
            update.acknowledge(core, context)

    def handle_uplink(self, name: str, *, up: bool, mtu: int, now: float) -> None:
        """An uplink came, went or changed its MTU (octets). Raises KeyError if unknown.

        Contexts on a lost uplink explore, and every peer is told the new set, at the rate of
        the policy: only the first of many contexts are reached before this returns.
        """
        core = self._core
        before = {uplink.name: uplink.up for uplink in core.local_sets.uplinks}[name]
        if not core.local_sets.change(name, up=up, mtu=mtu):
            return
        if up != before:
            core.history.clear(name)
        self._sweep.begin(core.contexts, now, tells=up != before)
        self._sweep.look(core)
        core.pace.begin(now)
        core.wake()

    def close_all(self, now: float) -> None:
        """The gateway stops: tell the peers of all contexts, paced, and make no new ones."""
        close.close_all(self._core, now)

    @property
    def closing(self) -> int:
        """How many contexts wait for their peer's word that they are closed."""
        return self._core.closing

    def park(self, for_s: float, now: float) -> None:
        """The site goes away for so long: peers that understand it are told to wait.

        Packets of our hosts for their contexts are dropped until ``unpark`` or the time is over.
        """
        park.begin(self._core, now + for_s, now)

    def unpark(self, now: float) -> None:
        """The site is back before its time; nothing happens when it was not away."""
        park.end(self._core, now)

    @property
    def away(self) -> Away | None:
        """What the peers said to it that we go away; None while we are here."""
        return park.away(self._core)

    # --- for people --------------------------------------------------------------------

    def contexts(self) -> Iterator[Context]:
        """All contexts, to be read only."""
        return iter(self._core.contexts)

    @property
    def uplinks(self) -> tuple[Uplink, ...]:
        """The uplinks as they are now."""
        return self._core.local_sets.uplinks

    def try_packet(self, packet: bytes, *, outbound: bool, now: float) -> Outcome:
        """Tell what would become of a packet (at least 40 octets), without changing anything.

        Of control messages only their verdict in a shadow without our secrets is known: ask
        about packets of hosts. Raises ValueError for a shorter packet.
        """
        if len(packet) < HEADER_OCTETS:
            raise ValueError(f"an IPv6 packet has at least {HEADER_OCTETS} octets")
        shadow = Engine.__new__(Engine)
        shadow._use(trial.shadow_of(self._core, packet, outbound=outbound))
        handle = shadow.handle_outbound if outbound else shadow.handle_inbound
        return trial.outcome_of(shadow._core, handle(packet, now))

    @property
    def drops(self) -> dict[Reason, int]:
        """How many packets died, by reason."""
        return dict(self._core.drops)

    @property
    def rewritten(self) -> int:
        """Packets that got locators."""
        return self._core.rewritten

    @property
    def restored(self) -> int:
        """Packets that got their ULIDs back."""
        return self._core.restored

    # --- the less usual packet ------------------------------------------------------------

    def _sorted(self, packet: bytes) -> Context | None:
        main = self._by_forked.get(packet[8:40])
        return forks.sort(main, packet) if main is not None else None

    def _outbound_miss(self, packet: bytes, now: float) -> Verdict:
        if len(packet) < HEADER_OCTETS:
            return self._core.drop(Reason.TRUNCATED)
        key = packet[8:40]
        core = self._core
        if key in self._by_parked:
            return park.handle_outbound(core, self._by_parked[key], packet, now)
        dead = core.local_sets.is_down(packet[8:24])
        if core.accounts.count(key, packet, outbound=True, now=now, dead=dead):
            hold_s = core.settings.hold_first_packet_s
            held = (
                hold_s > 0
                and startup.suspected(core, key)
                and core.contexts.by_pair(key) is None
                and core.first_packets.put(key, packet, now + hold_s)
            )
            self._want_context(key, now)
            if held:
                core.wake()
                return CONSUMED
        return outward.unmistaken(core, packet) if self._by_sent_label else None

    def _release(self, now: float) -> None:
        """Send the first packets that waited: with their context, or as they are."""
        core = self._core
        if not core.first_packets.by_pair:
            return
        plain = []
        for key in core.first_packets.pairs():
            context = core.contexts.by_pair(key)
            if context is None or not (context.carries or context.state in REMEMBERS):
                continue
            packet = core.first_packets.take(key)
            if packet is None or not context.carries:
                plain += [packet] if packet is not None else []
                continue
            verdict = self.handle_outbound(packet, now)
            if verdict is None or isinstance(verdict, bytes):
                core.effects.append(SendPacket(verdict or packet))
        for packet in (*plain, *core.first_packets.take_due(now)):
            verdict = outward.unmistaken(core, packet)
            if verdict is None or isinstance(verdict, bytes):
                core.effects.append(SendPacket(verdict or packet))

    def _want_context(self, key: bytes, now: float) -> None:
        core = self._core
        if core.contexts.by_pair(key) is not None:
            return
        core.accounts.silence(key, now + _ASK_AGAIN_S)
        pair = UlidPair(key[:16], key[16:])
        if not core.local_sets.is_local(pair.local) or core.local_sets.is_local(pair.peer):
            return
        if core.local_sets.is_locator_only(pair.local):
            return
        if until_s := core.peers.refused_until_s(pair.peer, pair.peer, now):
            core.accounts.silence(key, min(until_s, now + _ASK_AGAIN_S))
            return
        core.report(What.ASKED, pair.local + pair.peer)
        core.effects.append(AskCapability(pair))

    def _inbound_special(self, packet: bytes, now: float) -> tuple[Verdict, bool]:
        """Returns a verdict and whether it is final."""
        core, first = self._core, packet[6]
        if self._takes_options and first in forward.CHAINED:
            with suppress(MalformedMessage):
                place = find_tag_option(packet)
                if place is not None:
                    return self._restore_by_option(packet, place, now), True
        if first == NEXT_UDP:
            if packet[40:42] == _DNS_PORT:
                self._core.effects.append(LearnNames(packet[48:]))
            return None, False
        if first == NEXT_SHIM or first in forward.CHAINED:
            try:
                place = find_shim(packet)
            except MalformedMessage as malformed:
                return (
                    (self._core.drop(malformed.reason), True)
                    if first == NEXT_SHIM
                    else (None, False)
                )
            if place is not None:
                if packet[place.offset + 2] & 0x80:
                    return self._restore(packet, place, now), True
                verdict = control.handle_control(core, self._pending, packet, place.offset, now)
                self._release(now)
                return verdict, True
        upper = upper_layer(packet)
        if upper is not None and upper[0] == 58 and icmp.is_error(packet, upper[1]):
            hints.handle_error(self._core, packet, upper[1], now)
            verdict = icmp.handle_error(self._core, packet, upper[1], now)
            return verdict, verdict is not None
        return None, False

    def _restore(self, packet: bytes, place: Walk, now: float) -> Verdict:
        """RFC 5533 §12.2, with the addresses checked against the context's sets."""
        core = self._core
        offset = place.offset
        tag = int.from_bytes(packet[offset + 2 : offset + 8]) & TAG_MASK
        context = self._by_tag.get(tag)
        if context is None or context.state in REMEMBERS:
            route = LocatorPair(core.local_sets.meant(packet[24:40]), packet[8:24])
            return control.no_context(core, tag, route, now)
        if packet[offset + 1]:
            return core.drop(Reason.BAD_FIELD)
        return self._restored(context, packet, place, now)

    def _restore_by_option(self, packet: bytes, place: Walk, now: float) -> Verdict:
        """The same with the low 32 bits of the tag in a destination option (decision 21)."""
        tag = option_tag(packet, place.offset)
        context = self._by_short_tag.get(tag)
        if context is None or context.state in REMEMBERS:
            route = LocatorPair(packet[24:40], packet[8:24])
            return control.no_context(self._core, tag, route, now)
        return self._restored(context, packet, place, now)

    def _restored(self, context: Context, packet: bytes, place: Walk, now: float) -> Verdict:
        core = self._core
        if packet[8:40] != context.last_in_pair or context.state is not _ESTABLISHED:
            refused = self._admit(context, packet, now)
            if refused is not None:
                return refused
        if context.flow is not None:
            activity.look(core, context, now)
        context.packets_in += 1
        context.octets_in += len(packet)
        context.last_traffic_s = now
        try:
            restored = forward.restore(packet, place, context.inbound_key)
        except MalformedMessage as malformed:
            return core.drop(malformed.reason)
        if (context.send_due_s or not context.keepalive_due_s) and context.watched:
            reap.payload_in(core, context, restored, now)
        core.restored += 1
        return restored

    def _inbound_labelled(
        self, labels: dict[int, Context], packet: bytes, now: float
    ) -> tuple[Verdict, bool]:
        """Restore a packet whose label and addresses are a context's; a verdict, and if it is one.

        The same label between other addresses, or on the ULIDs, means nothing.
        """
        core = self._core
        context = labels.get(forward.label_of(packet))
        if context is None or context.state in REMEMBERS:
            return None, False
        pair = packet[8:40]
        if pair == context.inbound_key:
            return None, False
        if pair != context.last_in_pair:
            if not control.belongs(context, LocatorPair(packet[24:40], packet[8:24])):
                return None, False
            core.contexts.expect_label(context)
        refused = self._admit(context, packet, now)
        if refused is not None:
            return refused, True
        return self._taken_in(context, forward.unlabel(packet, context.inbound_key), now), True

    def _inbound_untagged(self, packet: bytes, now: float) -> tuple[Verdict, bool]:
        """Restore a packet whose addresses alone are a context's; a verdict, and if it is one.

        The peer's control messages, and its payload headers, have the same addresses.
        """
        context = self._by_untagged[packet[8:40]]
        if forward.has_shim(packet):
            return None, False
        refused = self._admit(context, packet, now)
        if refused is not None:
            return refused, True
        return self._taken_in(context, forward.readdress(packet, context.inbound_key), now), True

    def _taken_in(self, context: Context, restored: bytes, now: float) -> bytes:
        """Count a packet that had no header for us; it is the host's again."""
        core = self._core
        if context.flow is not None:
            activity.look(core, context, now)
        context.packets_in += 1
        context.octets_in += len(restored)
        context.last_traffic_s = now
        if (context.send_due_s or not context.keepalive_due_s) and context.watched:
            reap.payload_in(core, context, restored, now)
        core.restored += 1
        return restored

    def _admit(self, context: Context, packet: bytes, now: float) -> Reason | None:
        """Check what is not as with the packet before: the addresses, or the state."""
        core = self._core
        pair = packet[8:40]
        if pair != context.last_in_pair:
            route = LocatorPair(packet[24:40], packet[8:24])
            if not control.belongs(context, route):
                return core.drop(Reason.WRONG_LOCATOR)
            locator = context.peer_locator(route.peer)
            if locator is None or not locator.proved:
                context.packets_unproved += 1
                return control.unproved(core, context, now)
            if context.parking is not None:
                park.handle_packet(core, context, now)
            if context.parking is None:
                hints.handle_source(core, context, route.peer, now)
                context.last_in_pair = pair
        if context.state is not _ESTABLISHED:
            if not legal(context.state, Input.PAYLOAD):
                return core.drop(Reason.ILLEGAL_IN_STATE)
            establish.answer_early(core, context, now)
        return None
