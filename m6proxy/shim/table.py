"""Finding contexts: by ULID pair, tag, flow label, addresses and nonce (RFC 5533 §12.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from m6proxy.names import LocatorPair, Tag
from m6proxy.shim.context import Context
from m6proxy.shim.demux import UNTAGGED, DemuxMode
from m6proxy.shim.entropy import Entropy
from m6proxy.shim.forward import has_shim, label_of
from m6proxy.wire.dstopt import SHORT_MASK, short_tag

LABELS_MAX: Final = 1 << 19
"""Half of all flow labels: further contexts are found by their tags only."""
_LABEL_MASK: Final = 0xFFFFF
_OPTION_KEY: Final = SHORT_MASK + 1
"""Added to a short tag: no flow label is that large."""


class ContextTable:
    """All contexts of an engine. The public dictionaries are read by the packet path."""

    __slots__ = (
        "_by_nonce",
        "_by_pair",
        "_by_peer_tag",
        "_forks",
        "_untagged_keys",
        "by_forked",
        "by_inbound",
        "by_label",
        "by_outbound",
        "by_parked",
        "by_sent_label",
        "by_sent_option",
        "by_short_tag",
        "by_tag",
        "by_untagged",
        "expected_labels",
    )

    def __init__(self) -> None:
        self.by_outbound: dict[bytes, Context] = {}
        """Contexts that carry packets, by local and peer ULID (32 octets)."""
        self.by_forked: dict[bytes, Context] = {}
        """Instead of there: those whose packets are sorted among their forks first."""
        self.by_parked: dict[bytes, Context] = {}
        """Instead of there: those that wait for an end that is away."""
        self.by_inbound: dict[bytes, Context] = {}
        """The same, by peer and local ULID (32 octets)."""
        self.by_tag: dict[Tag, Context] = {}
        """Contexts by CT(local)."""
        self.by_label: dict[int, Context] = {}
        """Contexts by the flow label that we chose."""
        self.expected_labels: dict[int, Context] = {}
        """Those of them that have seen a locator pair other than the ULIDs."""
        self.by_sent_label: dict[tuple[bytes, int], Context] = {}
        """Re-homed contexts by the addresses (32 octets) and flow label of what they send;
        UNTAGGED stands for any label."""
        self.by_untagged: dict[bytes, Context] = {}
        """By the source and destination (32 octets) that their packets may have without a tag."""
        self._untagged_keys: dict[Context, tuple[bytes, ...]] = {}
        self.by_short_tag: dict[int, Context] = {}
        """Contexts by the 32 bits of CT(local) that fit an option, where peers may send those."""
        self.by_sent_option: dict[tuple[bytes, int], Context] = {}
        """Re-homed contexts by the addresses and the option's tag (``_OPTION_KEY`` added)."""
        self._by_pair: dict[bytes | tuple[bytes, int], Context] = {}
        """Those that packets do not find by their ULIDs: not carrying, or forks."""
        self._forks: dict[bytes, tuple[Context, ...]] = {}
        self._by_nonce: dict[int, Context] = {}
        self._by_peer_tag: dict[Tag, Context | tuple[Context, ...]] = {}
        """Two with the same tag are rare: the others need no tuple."""

    def __len__(self) -> int:
        return len(self.by_tag)

    def __iter__(self) -> Iterator[Context]:
        return iter(tuple(self.by_tag.values()))

    def new_tag(self, entropy: Entropy) -> Tag:
        """A context tag that no context uses (RFC 5533 §7.1)."""
        while True:
            tag = entropy.tag()
            if tag not in self.by_tag and short_tag(tag) not in self.by_short_tag:
                return tag

    def add(self, context: Context) -> None:
        """Take a new context in. Raises ValueError when its pair or tag is taken."""
        key = _pair_key(context.outbound_key, context.fii)
        known = self.by_pair(context.outbound_key, context.fii)
        if known is not None or context.local_tag in self.by_tag:
            raise ValueError(f"a context for {context.pair} exists already")
        self._by_pair[key] = context
        self.by_tag[context.local_tag] = context
        if context.fii:
            pair = context.outbound_key
            self._forks[pair] = (*self._forks.get(pair, ()), context)

    def remove(self, context: Context) -> None:
        """Forget a context under every key."""
        self.close(context)
        self._by_pair.pop(_pair_key(context.outbound_key, context.fii), None)
        self.by_tag.pop(context.local_tag, None)
        if context.fii:
            others = [x for x in self._forks.pop(context.outbound_key, ()) if x is not context]
            if others:
                self._forks[context.outbound_key] = tuple(others)
        if context.label:
            del self.by_label[context.label]
            self.expected_labels.pop(context.label, None)
        if self.by_short_tag:
            self.by_short_tag.pop(short_tag(context.local_tag), None)
        self.unbind_nonce(context)
        self.bind_peer_tag(context, 0)

    def take_options(self, context: Context) -> None:
        """Let packets with the tag in an option find the context."""
        self.by_short_tag[short_tag(context.local_tag)] = context

    def choose_label(self, context: Context, entropy: Entropy) -> None:
        """Give a context a flow label that no other has, whatever its locators may become."""
        if len(self.by_label) >= LABELS_MAX:
            return
        while not context.label or context.label in self.by_label:
            context.label = entropy.nonce() & _LABEL_MASK
        self.by_label[context.label] = context

    def expect_label(self, context: Context) -> None:
        """From now on packets may come that only their label tells from plain ones."""
        if context.label:
            self.expected_labels[context.label] = context

    def expect_untagged(self, context: Context, pair: bytes) -> None:
        """From now on packets between these addresses (32 octets) are the context's.

        The first context that they are promised to keeps them.
        """
        if self.by_untagged.setdefault(pair, context) is context:
            known = self._untagged_keys.get(context, ())
            if pair not in known:
                self._untagged_keys[context] = (*known, pair)

    def untagged(self, context: Context) -> tuple[bytes, ...]:
        """The pairs of addresses (32 octets) by which packets without a tag find the context."""
        return self._untagged_keys.get(context, ())

    def forget_untagged(self, context: Context) -> None:
        """No packet without a tag is the context's any more."""
        for pair in self._untagged_keys.pop(context, ()):
            del self.by_untagged[pair]

    def bind_sent(self, context: Context, route: bytes | None) -> None:
        """Note what the context puts into packets on a route (32 octets), or that it stops."""
        if context.sent_key is not None:
            self.by_sent_label.pop(context.sent_key, None)
            self.by_sent_option.pop(context.sent_key, None)
            context.sent_key = None
        if route is None or context.peer_mode is DemuxMode.EXTHDR:
            return
        mode = context.mode
        if mode is DemuxMode.FLOWLABEL:
            context.sent_key = (route, context.peer_label)
            self.by_sent_label[context.sent_key] = context
        elif mode is DemuxMode.IDENTIFIER:
            context.sent_key = (route, UNTAGGED)
            self.by_sent_label[context.sent_key] = context
        elif mode is DemuxMode.DSTOPT:
            context.sent_key = (route, _OPTION_KEY | short_tag(context.peer_tag))
            self.by_sent_option[context.sent_key] = context

    def by_sent_bare(self, packet: bytes) -> Context | None:
        """Find the context that sent a packet with no payload header, by addresses and label."""
        addresses = packet[8:40]
        context = self.by_sent_label.get((addresses, label_of(packet)))
        if context is not None or has_shim(packet):
            return context
        return self.by_sent_label.get((addresses, UNTAGGED))

    def open(self, context: Context) -> None:
        """Let packets find the context; forks are not found by their ULIDs, nor parked ones."""
        if context.parking is None and context.fii == 0:
            self.by_parked.pop(context.outbound_key, None)
            self.by_outbound.pop(context.outbound_key, None)
            self.by_forked.pop(context.outbound_key, None)
            self._by_pair.pop(context.outbound_key, None)
            found = self.by_forked if context.forks else self.by_outbound
            found[context.outbound_key] = context
            self.by_inbound[context.inbound_key] = context

    def park(self, context: Context) -> None:
        """Let no packet find the context by its ULIDs until it is opened again."""
        self._close_pair(context)
        if context.fii == 0:
            self.by_parked[context.outbound_key] = context

    def close(self, context: Context) -> None:
        """Let no packet find the context by its addresses any more."""
        self.forget_untagged(context)
        self._close_pair(context)

    def _close_pair(self, context: Context) -> None:
        if self.by_parked.get(context.outbound_key) is context:
            del self.by_parked[context.outbound_key]
        if self.by_inbound.get(context.inbound_key) is context:
            self.by_outbound.pop(context.outbound_key, None)
            self.by_forked.pop(context.outbound_key, None)
            del self.by_inbound[context.inbound_key]
            self._by_pair[context.outbound_key] = context

    def by_pair(self, key: bytes, fii: int = 0) -> Context | None:
        """Find by local and peer ULID (32 octets) and fork, in whatever state."""
        if fii:
            return self._by_pair.get((key, fii))
        return self.by_outbound.get(key) or self.by_forked.get(key) or self._by_pair.get(key)

    def all_of_pair(self, key: bytes) -> tuple[Context, ...]:
        """The context of a ULID pair (32 octets), if there is one, and its forks."""
        main = self.by_pair(key)
        return (*((main,) if main is not None else ()), *self._forks.get(key, ()))

    def bind_nonce(self, context: Context, nonce: int) -> None:
        """Let R1 and R2 with this initiator nonce find the context."""
        self.unbind_nonce(context)
        self._by_nonce[nonce] = context

    def unbind_nonce(self, context: Context) -> None:
        """Let no R1 or R2 find the context any more."""
        if context.handshake is not None:
            nonce = context.handshake.initiator_nonce
            if self._by_nonce.get(nonce) is context:
                del self._by_nonce[nonce]

    def by_nonce(self, nonce: int) -> Context | None:
        """Find the context whose exchange uses this initiator nonce."""
        return self._by_nonce.get(nonce)

    def bind_peer_tag(self, context: Context, tag: Tag) -> None:
        """Set CT(peer); 0 takes it away."""
        if context.peer_tag:
            others = tuple(x for x in self.by_peer_tag(context.peer_tag) if x is not context)
            if others:
                self._by_peer_tag[context.peer_tag] = others[0] if len(others) == 1 else others
            else:
                self._by_peer_tag.pop(context.peer_tag, None)
        context.peer_tag = tag
        if tag:
            others = self.by_peer_tag(tag)
            self._by_peer_tag[tag] = (*others, context) if others else context

    def by_peer_tag(self, tag: Tag) -> tuple[Context, ...]:
        """All contexts whose peer chose this tag; different peers may choose the same."""
        found = self._by_peer_tag.get(tag, ())
        return found if isinstance(found, tuple) else (found,)

    def by_sent(self, tag: Tag, route: LocatorPair) -> Context | None:
        """Find the context that sent a packet with CT(peer) from and to these locators."""
        for context in self.by_peer_tag(tag):
            if context.local_set.uplink_of(route.local) and context.peer_locator(route.peer):
                return context
        return self.by_sent_short(tag, route)

    def by_sent_short(self, short: int, route: LocatorPair) -> Context | None:
        """Find the re-homed context that sends an option with these 32 bits on a route."""
        return self.by_sent_option.get((route.local + route.peer, _OPTION_KEY | short))


def _pair_key(key: bytes, fii: int) -> bytes | tuple[bytes, int]:
    """Forks are few: the others need no tuple of their own."""
    return (key, fii) if fii else key
