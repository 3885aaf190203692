/* Inbound: what a re-homed packet was before. forward.py says what must come out. */
#ifndef M6PROXY_RESTORE_H
#define M6PROXY_RESTORE_H

#include "account.h"
#include "mark.h"

#define ICMPV6_INFORMATIONAL 128
#define TAG_MASK ((1ULL << 47) - 1)
#define NOT_OURS (-2)

ALWAYS int belongs(const struct in_flow *flow, const struct pair *at)
{
	int peer = 0, local = 0;

#pragma unroll
	for (int i = 0; i < LOCATORS_MAX; i++) {
		peer |= i < flow->n_peer && is_same(&flow->peer[i], &at->src);
		local |= i < flow->n_local && is_same(&flow->local[i], &at->dst);
	}
	return peer && local;
}

ALWAYS __u32 folded(__u64 sum)
{
	sum = (sum & 0xFFFFFFFF) + (sum >> 32);
	sum = (sum & 0xFFFFFFFF) + (sum >> 32);
	sum = (sum & 0xFFFF) + (sum >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	return (sum & 0xFFFF) + (sum >> 16);
}

ALWAYS __u64 half_sum(__u64 word)
{
	return (word & 0xFFFFFFFF) + (word >> 32);
}

ALWAYS __u64 pair_sum(const struct pair *pair)
{
	return half_sum(pair->src.high) + half_sum(pair->src.low) + half_sum(pair->dst.high) +
	       half_sum(pair->dst.low);
}

/* Aggregation by the kernel before us put the checksum's seed over the locators, where the
 * sender had it over the ULIDs; then it is put back. Only GSO packets have a seed for sure. */
ALWAYS void reseed(struct __sk_buff *skb, __u32 at, __u8 protocol, __u32 upper_octets,
		   const struct pair *locators, const struct pair *ulids)
{
	__u32 field = at + (protocol == NEXT_TCP ? 16 : 6);
	__u64 rest = bpf_htonl(upper_octets) + (__u64)bpf_htonl(protocol);
	__u16 seed;

	if (protocol != NEXT_TCP && protocol != NEXT_UDP)
		return;
	if (bpf_skb_load_bytes(skb, field, &seed, sizeof(seed)) ||
	    seed != folded(pair_sum(locators) + rest))
		return;
	seed = folded(pair_sum(ulids) + rest);
	bpf_skb_store_bytes(skb, field, &seed, sizeof(seed), BPF_F_RECOMPUTE_CSUM);
}

/* A packet that has its ULIDs, of a context: view is as it is now. */
ALWAYS int arrive(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		  const struct view *view, __u32 ingress)
{
	struct recent *recent = NULL;
	struct trait trait;

	if (settings->express_until_ns) {
		describe(&trait, settings, view);
		recent = recent_of(&trait);
	}
	return onward(skb, link_octets, settings, view, recent, ingress);
}

/* Only addresses, and the label where one was put. */
ALWAYS int put_back(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		    struct view *view, const struct pair *ulids, __u32 slot, __u32 label_mask)
{
	if (skb->gso_size)
		reseed(skb, link_octets + HEADER_OCTETS, view->head.next_header,
		       view->octets - HEADER_OCTETS, &view->head.at, ulids);
	note_in(skb, settings, slot, view->octets);
	view->head.at = *ulids;
	view->head.first &= ~label_mask;
	if (bpf_skb_store_bytes(skb, link_octets, &view->head, HEADER_OCTETS, BPF_F_RECOMPUTE_CSUM))
		return drop(COUNT_DROP_NO_ROOM);
	count(COUNT_RESTORED);
	return arrive(skb, link_octets, settings, view, skb->ifindex);
}

/* The 8 octets behind the fixed header go; the addresses in view are those that the packet gets. */
ALWAYS int shrink(struct __sk_buff *skb, __u32 link_octets, struct view *view)
{
	view->octets -= GROWTH_OCTETS;
	view->head.payload_octets = bpf_htons(view->octets - HEADER_OCTETS);
	view->head.next_header = upper_octet(view, 0);
	if (bpf_skb_adjust_room(skb, -GROWTH_OCTETS, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO) ||
	    bpf_skb_store_bytes(skb, link_octets, &view->head, HEADER_OCTETS, BPF_F_RECOMPUTE_CSUM))
		return -1;
	view->has_upper = !bpf_skb_load_bytes(skb, link_octets + HEADER_OCTETS, &view->upper,
					      sizeof(view->upper));
	return 0;
}

/* The uplink's number when the packets of a TCP stream shall be aggregated: GRO knew nothing of
 * their shim. */
ALWAYS __u32 regrouped(const struct __sk_buff *skb, __u32 link_octets,
		       const struct settings *settings, const struct view *view)
{
	if (!settings->regroup_ifindex || link_octets != ETH_HLEN || skb->gso_size ||
	    view->head.next_header != NEXT_SHIM || upper_octet(view, 0) != NEXT_TCP)
		return MARK_NONE;
	return uplink_number(settings, skb->ifindex);
}

/* GRO steps over destination options, and with the ULIDs back in place the checksums are right:
 * so the header stays for now, under that number. after_regroup takes it out, once for many. */
ALWAYS int regroup(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		   struct view *view, __u32 number)
{
	view->head.next_header = NEXT_DESTINATION;
	if (bpf_skb_store_bytes(skb, link_octets, &view->head, HEADER_OCTETS, BPF_F_RECOMPUTE_CSUM))
		return drop(COUNT_DROP_NO_ROOM);
	count(COUNT_RESTORED);
	set_mark(skb, settings, number);
	return bpf_redirect(settings->regroup_ifindex, 0);
}

/* Whose a packet is. The kernel gives the memory of an entry that is replaced to the next new one at
 * once: what was read of it is right if the same memory is found again. */
struct whose {
	struct pair ulids;
	__u32 slot;
	__u16 flags;
	__u16 belongs;
};

ALWAYS int is_still(const struct in_flow *flow, __u64 key)
{
	barrier();
	return bpf_map_lookup_elem(&m6p_tag_v1, &key) == flow;
}

ALWAYS struct whose whose_is(const struct in_flow *flow, const struct pair *at)
{
	struct whose whose = {
		.ulids = flow->ulids,
		.slot = flow->slot,
		.flags = flow->flags,
		.belongs = belongs(flow, at),
	};

	return whose;
}

ALWAYS int take_out(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		    struct view *view, const struct whose *whose)
{
	__u32 number = regrouped(skb, link_octets, settings, view);

	if (number != MARK_NONE) {
		view->head.at = whose->ulids;
		return regroup(skb, link_octets, settings, view, number);
	}
	note_in(skb, settings, whose->slot, view->octets);
	if (skb->gso_size)
		reseed(skb, link_octets + HEADER_OCTETS + GROWTH_OCTETS, upper_octet(view, 0),
		       view->octets - HEADER_OCTETS - GROWTH_OCTETS, &view->head.at, &whose->ulids);
	view->head.at = whose->ulids;
	if (shrink(skb, link_octets, view))
		return drop(COUNT_DROP_NO_ROOM);
	count(COUNT_RESTORED);
	return arrive(skb, link_octets, settings, view, skb->ifindex);
}

ALWAYS int with_label(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		      struct view *view)
{
	__u64 key = (__u64)MODE_FLOWLABEL << 56 | bpf_ntohl(view->head.first & LABEL_MASK);
	const struct in_flow *flow = bpf_map_lookup_elem(&m6p_tag_v1, &key);
	struct whose whose;

	if (!flow)
		return NOT_OURS;
	whose = whose_is(flow, &view->head.at);
	if (!is_still(flow, key))
		return slow(COUNT_SLOW_LABEL);
	if (is_same(&view->head.at.src, &whose.ulids.src) &&
	    is_same(&view->head.at.dst, &whose.ulids.dst))
		return NOT_OURS;
	if (!whose.belongs)
		return whose.flags & IN_COMPLETE ? NOT_OURS : slow(COUNT_SLOW_LOCATOR);
	return put_back(skb, link_octets, settings, view, &whose.ulids, whose.slot, LABEL_MASK);
}

ALWAYS int with_tag(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		    struct view *view, __u64 key)
{
	const struct in_flow *flow = bpf_map_lookup_elem(&m6p_tag_v1, &key);
	struct whose whose;

	if (!flow)
		return slow(COUNT_SLOW_TAG);
	whose = whose_is(flow, &view->head.at);
	if (!is_still(flow, key))
		return slow(COUNT_SLOW_TAG);
	if (!whose.belongs)
		return slow(COUNT_SLOW_LOCATOR);
	return take_out(skb, link_octets, settings, view, &whose);
}

ALWAYS __u64 shim_key(const struct view *view)
{
	return (__u64)MODE_EXTHDR << 56 | (bpf_be64_to_cpu(view->upper) & TAG_MASK);
}

ALWAYS int with_shim(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		     struct view *view)
{
	if (!view->has_upper || !(upper_octet(view, 2) & 0x80))
		return slow(COUNT_SLOW_CONTROL);
	if (upper_octet(view, 1))
		return slow(COUNT_SLOW_CHAIN);
	return with_tag(skb, link_octets, settings, view, shim_key(view));
}

ALWAYS int is_tag_option(const struct view *view)
{
	return view->has_upper && upper_octet(view, 1) == 0 && upper_octet(view, 2) == OPTION_TAG &&
	       upper_octet(view, 3) == OPTION_TAG_OCTETS;
}

ALWAYS int with_option(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		       struct view *view)
{
	return with_tag(skb, link_octets, settings, view,
			(__u64)MODE_DSTOPT << 56 | (bpf_be64_to_cpu(view->upper) & 0xFFFFFFFF));
}

/* A piece of a re-homed datagram: connection tracking may put it together behind us, and then it
 * must not be marked. The fragment header names what is inside. */
ALWAYS int is_piece(const struct view *view)
{
	return view->head.next_header == NEXT_FRAGMENT &&
	       (!view->has_upper || upper_octet(view, 0) == NEXT_SHIM ||
		is_chained(upper_octet(view, 0)));
}

/* A pair that sends on its ULIDs, or a re-homed one that its addresses alone tell. */
ALWAYS int with_pair(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		     struct view *view)
{
	const struct pair_flow *flow = bpf_map_lookup_elem(&m6p_pair_v1, &view->head.at);
	struct pair_flow found;

	if (!flow)
		return NOT_OURS;
	if (flow->mode == MODE_IDENTIFIER) {
		found = *flow;
		barrier();
		if (bpf_map_lookup_elem(&m6p_pair_v1, &view->head.at) != flow)
			return slow(COUNT_SLOW_TAG);
		return put_back(skb, link_octets, settings, view, &found.ulids, found.slot, 0);
	}
	note_in(skb, settings, flow->slot, view->octets);
	return arrive(skb, link_octets, settings, view, skb->ifindex);
}

/* To an address that no host has: Python answers one packet of a pair of addresses at a time,
 * whatever their ports are. */
ALWAYS int refuse(const struct view *view)
{
	struct trait trait = { .at = view->head.at };

	if (is_settled(recent_of(&trait)))
		return drop(COUNT_DROP_NOBODYS);
	settle(&trait, now());
	return slow(COUNT_SLOW_NOBODYS);
}

ALWAYS int from_uplink(struct __sk_buff *skb, __u32 link_octets)
{
	const struct settings *settings = settings_of();
	const struct prefix *prefix;
	struct recent *recent;
	struct trait trait;
	struct view view;
	struct pair ulids;
	int verdict;

	if (!settings || skb->pkt_type != PACKET_HOST)
		return PASS;
	if (bits_of(skb, settings) == MARK_REGROUPED) {
		set_mark(skb, settings, MARK_PAST);
		return PASS;
	}
	unmark(skb, settings);
	if (!see(skb, link_octets, &view))
		return PASS;
	describe(&trait, settings, &view);
	recent = recent_of(&trait);
	if (is_settled(recent) && !is_chained(view.head.next_header) && !is_dns_answer(&view))
		return onward(skb, link_octets, settings, &view, recent, skb->ifindex);
	if (settings->flags & SETTINGS_LABELS && view.head.first & LABEL_MASK) {
		verdict = with_label(skb, link_octets, settings, &view);
		if (verdict != NOT_OURS)
			return verdict;
	}
	if (view.head.next_header == NEXT_SHIM)
		return with_shim(skb, link_octets, settings, &view);
	if (view.head.next_header == NEXT_DESTINATION && is_tag_option(&view))
		return with_option(skb, link_octets, settings, &view);
	if (view.head.next_header == NEXT_ICMPV6 &&
	    (!view.has_upper || upper_octet(&view, 0) < ICMPV6_INFORMATIONAL))
		return slow(COUNT_SLOW_ERROR);
	if (is_chained(view.head.next_header) &&
	    walk(skb, link_octets, &view) == CHAIN_OTHER)
		return slow(COUNT_SLOW_CHAIN);
	if (is_piece(&view))
		return slow(COUNT_SLOW_FRAGMENT);
	if (is_dns_answer(&view) && prefix_of(settings, &view.head.at.dst) &&
	    !copy_dns(skb, link_octets, &view))
		return slow(COUNT_SLOW_POLICY);
	verdict = with_pair(skb, link_octets, settings, &view);
	if (verdict != NOT_OURS)
		return verdict;
	prefix = prefix_of(settings, &view.head.at.dst);
	if (!prefix)
		return PASS;
	if (is_nobodys(prefix, &view.head.at.dst))
		return refuse(&view);
	ulids.src = view.head.at.dst;
	ulids.dst = view.head.at.src;
	if ((prefix->flags & PREFIX_SLOW) || (settings->flags & SETTINGS_SLOW_MISSES) ||
	    !count_miss(skb, link_octets, settings, &view, &ulids, MISS_ANSWERED,
			&trait))
		return slow(COUNT_SLOW_POLICY);
	return onward(skb, link_octets, settings, &view, recent, skb->ifindex);
}

/* What regroup sent, aggregated: on as if it had come by its uplink like this. */
ALWAYS int after_regroup(struct __sk_buff *skb)
{
	const struct settings *settings = settings_of();
	const struct in_flow *flow;
	struct view view;
	__u32 number, uplink;
	__u64 key;
	int verdict;

	if (!settings)
		return DROP;
	number = number_of(skb, settings);
	if (number == MARK_NONE || number == MARK_PAST || !see(skb, ETH_HLEN, &view) ||
	    view.head.next_header != NEXT_DESTINATION || !view.has_upper)
		return drop(COUNT_DROP_NO_FLOW);
	key = shim_key(&view);
	flow = bpf_map_lookup_elem(&m6p_tag_v1, &key);
	if (flow)
		note_in(skb, settings, flow->slot, view.octets);
	if (shrink(skb, ETH_HLEN, &view))
		return drop(COUNT_DROP_NO_ROOM);
	count(COUNT_REGROUPED);
	uplink = settings->uplinks[number & (UPLINKS_MAX - 1)];
	set_mark(skb, settings, MARK_PAST);
	verdict = arrive(skb, ETH_HLEN, settings, &view, uplink);
	if (verdict != PASS)
		return verdict;
	set_bits(skb, settings, MARK_REGROUPED);
	return bpf_redirect(uplink, BPF_F_INGRESS);
}

#endif
