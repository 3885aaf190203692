/* Outbound: marked at the LAN, rewritten at the uplink. forward.py says what must come out. */
#ifndef M6PROXY_REWRITE_H
#define M6PROXY_REWRITE_H

#include "account.h"
#include "mark.h"

/* m6proxy/shim/forward.py SEGMENT_OCTETS */
#define SEGMENT_OCTETS 40
/* m6proxy/dataplane/nfqueue.py COPY_OCTETS: what is larger Python cannot rewrite */
#define QUEUED_OCTETS_MAX 3840

/* Insert 8 octets behind the fixed header and let a header of our own stand before them. */
ALWAYS int insert(struct __sk_buff *skb, __u32 link_octets, struct view *view,
		  const struct out_flow *flow, __u8 inserted)
{
	struct {
		struct head head;
		__u8 tail[8];
	} grown = { .head = view->head };

	if (view->octets + GROWTH_OCTETS > HEADER_OCTETS + 0xFFFF)
		return drop(COUNT_DROP_NO_ROOM);
	grown.head.payload_octets = bpf_htons(view->octets - HEADER_OCTETS + GROWTH_OCTETS);
	grown.head.next_header = inserted;
	grown.head.at = flow->locators;
	__builtin_memcpy(grown.tail, flow->tail, sizeof(grown.tail));
	grown.tail[0] = view->head.next_header;
	if (bpf_skb_adjust_room(skb, GROWTH_OCTETS, BPF_ADJ_ROOM_NET,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) ||
	    bpf_skb_store_bytes(skb, link_octets, &grown, sizeof(grown), BPF_F_RECOMPUTE_CSUM))
		return drop(COUNT_DROP_NO_ROOM);
	count(COUNT_REWRITTEN);
	return PASS;
}

/* New addresses, and another flow label where the mode has one. */
ALWAYS int readdress(struct __sk_buff *skb, __u32 link_octets, struct view *view,
		     const struct out_flow *flow)
{
	view->head.at = flow->locators;
	if (flow->mode == MODE_FLOWLABEL)
		view->head.first = (view->head.first & ~LABEL_MASK) | flow->label;
	if (bpf_skb_store_bytes(skb, link_octets, &view->head, HEADER_OCTETS, BPF_F_RECOMPUTE_CSUM))
		return drop(COUNT_DROP_NO_ROOM);
	count(COUNT_REWRITTEN);
	return PASS;
}

/* What the flow's mode says of a packet that need not be split. */
ALWAYS int rewrite(struct __sk_buff *skb, __u32 link_octets, struct view *view,
		   const struct out_flow *flow)
{
	if (flow->mode == MODE_EXTHDR)
		return insert(skb, link_octets, view, flow, NEXT_SHIM);
	if (flow->mode == MODE_DSTOPT)
		return insert(skb, link_octets, view, flow, NEXT_DESTINATION);
	return readdress(skb, link_octets, view, flow);
}

/* The kernel segments behind destination options, not behind a shim header. So the header
 * goes in under that number; after_split makes each segment's right. */
ALWAYS int split(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		 struct view *view, const struct out_flow *flow)
{
	int verdict;

	if (!settings->split_ifindex || link_octets != ETH_HLEN)
		return drop(COUNT_DROP_NO_ROOM);
	verdict = insert(skb, link_octets, view, flow, NEXT_DESTINATION);
	if (verdict != PASS)
		return verdict;
	count(COUNT_SPLIT);
	return bpf_redirect(settings->split_ifindex, 0);
}

/* The flow changed its uplink, or went back to its ULIDs, while the packet was on its way through
 * the gateway: it goes to the uplink of now, where it comes by here again. */
ALWAYS int follow(struct __sk_buff *skb, const struct settings *settings,
		  const struct out_flow *flow)
{
	__u32 number = flow->uplink & (UPLINKS_MAX - 1);
	__u32 ifindex = settings->uplinks[number];

	if (!ifindex)
		return drop(COUNT_DROP_WRONG_UPLINK);
	set_mark(skb, settings, flow->mode == MODE_ULIDS ? MARK_PAST : number);
	if (flow->mode == MODE_ULIDS && ifindex == skb->ifindex)
		return PASS;
	count(COUNT_REDIRECTED);
	return bpf_redirect_neigh(ifindex, NULL, 0, 0);
}

/* The kernel gives the memory of an entry that was replaced to the next new one, at once. So the
 * entry is copied, and the copy is of this flow if the same memory is found again. */
ALWAYS int copy_flow(const struct pair *ulids, struct out_flow *copy)
{
	const struct out_flow *flow = bpf_map_lookup_elem(&m6p_out_v1, ulids);

#pragma clang loop unroll(disable)
	for (int i = 0; i < 3 && flow; i++) {
		const struct out_flow *before = flow;

		*copy = *flow;
		barrier();
		flow = bpf_map_lookup_elem(&m6p_out_v1, ulids);
		if (flow == before)
			return 1;
	}
	return 0;
}

ALWAYS int to_uplink(struct __sk_buff *skb, __u32 link_octets)
{
	const struct settings *settings;
	struct out_flow flow;
	struct view view;
	__u32 number;

	if (!skb->mark)
		return PASS;
	settings = settings_of();
	if (!settings)
		return PASS;
	number = number_of(skb, settings);
	if (number == MARK_PAST)
		return note_way(skb, link_octets, settings);
	if (number == MARK_NONE)
		return PASS;
	if (!see(skb, link_octets, &view))
		return drop(COUNT_DROP_NO_FLOW);
	if (!copy_flow(&view.head.at, &flow)) {
		if (!skb->ingress_ifindex || !prefix_of(settings, &view.head.at.src))
			return PASS; /* the gateway's own: the daemon asks a name server this way */
		return drop(COUNT_DROP_NO_FLOW);
	}
	if (flow.uplink != number || flow.mode == MODE_ULIDS ||
	    settings->uplinks[number & (UPLINKS_MAX - 1)] != skb->ifindex)
		return follow(skb, settings, &flow);
	if (settings->express_until_ns && link_octets == ETH_HLEN)
		learn(skb, settings, &view, number);
	if (flow.mode == MODE_EXTHDR && skb->gso_size)
		return split(skb, link_octets, settings, &view, &flow);
	set_mark(skb, settings, MARK_NONE);
	return rewrite(skb, link_octets, &view, &flow);
}

/* A segment of what split sent: the shim header gets its own number, and the uplink its packet. */
ALWAYS int after_split(struct __sk_buff *skb)
{
	const struct settings *settings = settings_of();
	__u8 shim = NEXT_SHIM;
	__u32 number;

	if (!settings)
		return DROP;
	number = number_of(skb, settings);
	if (number == MARK_NONE || number == MARK_PAST ||
	    bpf_skb_store_bytes(skb, ETH_HLEN + __builtin_offsetof(struct head, next_header), &shim,
				1, 0))
		return drop(COUNT_DROP_NO_FLOW);
	set_mark(skb, settings, MARK_NONE);
	return bpf_redirect(settings->uplinks[number & (UPLINKS_MAX - 1)], 0);
}

/* --- at the LAN ---------------------------------------------------------------------------- */

/* Whether the peer would take a plain packet for a re-homed context's: by its label, or because
 * it needs none between these addresses. */
ALWAYS int is_mistaken(const struct settings *settings, const struct view *view,
		       const struct pair *wire)
{
	struct sent_key key = { .locators = *wire, .label = view->head.first & LABEL_MASK };

	if (!(settings->flags & SETTINGS_SENT_LABELS))
		return 0;
	if (bpf_map_lookup_elem(&m6p_sent_v1, &key))
		return 1;
	key.label = SENT_UNTAGGED;
	return bpf_map_lookup_elem(&m6p_sent_v1, &key) != NULL;
}

/* How much smaller than the path a packet has to be (m6proxy/shim/forward.py room_octets). */
ALWAYS __u32 room_octets(const struct out_flow *flow, const struct view *view)
{
	switch (flow->mode) {
	case MODE_EXTHDR:
		return GROWTH_OCTETS;
	case MODE_DSTOPT:
		return view->head.next_header == NEXT_TCP ? SEGMENT_OCTETS : GROWTH_OCTETS;
	default:
		return 0;
	}
}

/* Whether the chain of headers must be looked at before the flow's header can go in, or be left
 * out: a packet without a tag must not have a shim header of the host. */
ALWAYS int is_unclear(const struct out_flow *flow, const struct view *view)
{
	if (flow->mode == MODE_FLOWLABEL)
		return 0;
	return is_chained(view->head.next_header) ||
	       (flow->mode == MODE_IDENTIFIER && view->head.next_header == NEXT_SHIM);
}

/* Marked for its uplink, where it gets its locators; or at once, when its way is known. */
ALWAYS int depart(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		  struct view *view, const struct out_flow *flow, struct recent *recent)
{
	const struct way *way =
		way_of(skb, link_octets, settings, view, recent, skb->ifindex, flow->uplink);
	struct out_flow copy = *flow;
	int verdict;

	barrier();
	if (!way || bpf_map_lookup_elem(&m6p_out_v1, &view->head.at) != flow) {
		set_mark(skb, settings, copy.uplink);
		return PASS;
	}
	if (address_link(skb, way))
		return drop(COUNT_DROP_NO_ROOM);
	view->head.hop_limit -= 1;
	if (copy.mode == MODE_EXTHDR && skb->gso_size) {
		set_mark(skb, settings, copy.uplink);
		count(COUNT_EXPRESS);
		return split(skb, link_octets, settings, view, &copy);
	}
	verdict = rewrite(skb, link_octets, view, &copy);
	return verdict == PASS ? express(skb, settings, way) : verdict;
}

/* The pair that segments has link-layer headers, and gives them to the uplink as they are. */
ALWAYS int can_split(const struct settings *settings, __u8 number)
{
	return settings->split_ifindex &&
	       !(settings->flags >> (number & (UPLINKS_MAX - 1)) & SETTINGS_BARE_UPLINK);
}

/* Why a daemon that lives has to see a packet that could go without; 0: it need not. */
ALWAYS __u32 why_shown(const struct settings *settings, const struct view *view,
		       const struct out_flow *flow, const struct activity *activity)
{
	if (flow->flags & OUT_WATCHED && is_attended(settings))
		return COUNT_SLOW_FLAGGED;
	if (view->head.next_header == NEXT_TCP && is_overdue(settings, activity))
		return COUNT_SLOW_OVERDUE;
	return 0;
}

/* To the daemon, and if there is none in the queue after all, on by the flow's uplink. */
ALWAYS int show(struct __sk_buff *skb, const struct settings *settings, __u32 number, __u32 why)
{
	set_bits(skb, settings, MARK_SHOWN | (number & (UPLINKS_MAX - 1)));
	return slow(why);
}

ALWAYS int lan_hit(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		   struct view *view, const struct out_flow *flow, struct recent *recent)
{
	struct activity *activity;
	__u32 octets, shown;

	if (flow->flags & OUT_SLOW)
		return slow(COUNT_SLOW_FLAGGED);
	activity = activity_of(flow->slot);
	shown = why_shown(settings, view, flow, activity);
	if (flow->mode == MODE_ULIDS) {
		if (shown)
			return slow(shown);
		note_out(skb, settings, flow->slot, activity, view->octets);
		return onward(skb, link_octets, settings, view, recent, skb->ifindex);
	}
	if (view->head.next_header == NEXT_FRAGMENT)
		return slow(COUNT_SLOW_FRAGMENT);
	if (is_unclear(flow, view))
		return slow(COUNT_SLOW_CHAIN);
	if ((flow->mode == MODE_EXTHDR || flow->mode == MODE_DSTOPT) &&
	    is_mistaken(settings, view, &flow->locators))
		return slow(COUNT_SLOW_LABEL);
	octets = wire_octets(skb, link_octets, view);
	if (!octets || octets + room_octets(flow, view) > flow->mtu)
		return slow(COUNT_SLOW_TOO_BIG);
	if (flow->mode == MODE_EXTHDR && skb->gso_size && !can_split(settings, flow->uplink))
		return slow(COUNT_SLOW_TOO_BIG);
	if (shown && octets <= QUEUED_OCTETS_MAX)
		return show(skb, settings, flow->uplink, shown);
	note_out(skb, settings, flow->slot, activity, view->octets);
	return depart(skb, link_octets, settings, view, flow, recent);
}

ALWAYS int is_beyond(const struct settings *settings, const struct pair *at)
{
	__u64 high = bpf_be64_to_cpu(at->dst.high);

	return high >> 56 != 0xFF && high >> 54 != 0xFE80 >> 6 && !prefix_of(settings, &at->dst);
}

ALWAYS int from_lan(struct __sk_buff *skb, __u32 link_octets)
{
	const struct settings *settings = settings_of();
	const struct out_flow *flow;
	const struct prefix *prefix;
	struct recent *recent;
	struct trait trait;
	struct view view;

	if (!settings || skb->pkt_type != PACKET_HOST)
		return PASS;
	unmark(skb, settings);
	if (!see(skb, link_octets, &view))
		return PASS;
	describe(&trait, settings, &view);
	recent = recent_of(&trait);
	if (!recent && is_mistaken(settings, &view, &view.head.at))
		return slow(COUNT_SLOW_LABEL);
	if (is_settled(recent))
		return onward(skb, link_octets, settings, &view, recent, skb->ifindex);
	flow = bpf_map_lookup_elem(&m6p_out_v1, &view.head.at);
	if (flow)
		return lan_hit(skb, link_octets, settings, &view, flow, recent);
	prefix = prefix_of(settings, &view.head.at.src);
	if (!prefix || !is_beyond(settings, &view.head.at))
		return PASS;
	if ((prefix->flags & PREFIX_SLOW) || (settings->flags & SETTINGS_SLOW_MISSES) ||
	    !count_miss(skb, link_octets, settings, &view, &view.head.at, MISS_OUTBOUND, &trait))
		return slow(COUNT_SLOW_POLICY);
	return onward(skb, link_octets, settings, &view, recent, skb->ifindex);
}

#endif
