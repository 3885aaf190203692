/* What the last packets of a flow showed spares the next ones a look at large maps, and, where
 * nobody else wants to see packets, the gateway's IPv6 stack (docs/decisions/0027).
 *
 * A flow's first packet goes the ordinary way: marked, by netfilter, rules and routes. At the
 * interface where it leaves, its way is written down (learn). For WAY_NS the packets behind it get the same
 * link-layer header and are sent there at once (express); then one goes the ordinary way again.
 * So routes, neighbours and MTU are the kernel's own, at most that much late.
 *
 * No packet overtakes another: the kernel may hold those of the ordinary way until the end of a
 * batch, so one that may not go express takes the way from those behind it (give_up).
 */
#ifndef M6PROXY_RECENT_H
#define M6PROXY_RECENT_H

#include "mark.h"
#include "verdict.h"

#define SETTLED_NS 16000000ULL
#define WAY_NS 16000000ULL
#define ECN_MASK bpf_htonl(0x00300000)

/* Of ICMPv6 only type and code, and what a fragment is of: the rest is each packet's own. */
ALWAYS __u32 ports_of(const struct view *view)
{
	__u32 ports = bpf_be64_to_cpu(view->upper) >> 32;

	if (view->head.next_header == NEXT_ICMPV6)
		ports &= 0xFFFF0000;
	if (view->head.next_header == NEXT_FRAGMENT)
		ports &= 0xFF000000;
	return bpf_htonl(ports);
}

ALWAYS void describe(struct trait *trait, const struct settings *settings, const struct view *view)
{
	trait->at = view->head.at;
	trait->first = view->head.first & ~ECN_MASK;
	trait->ports = ports_of(view);
	trait->next_header = view->head.next_header;
	trait->generation = settings->generation;
}

ALWAYS struct recent *place_of(const struct trait *trait)
{
	__u64 mixed = (trait->at.src.high ^ trait->at.dst.low) * 0x9E3779B97F4A7C15ULL ^
		      (trait->at.src.low ^ trait->at.dst.high ^ trait->ports) *
			      0xC2B2AE3D27D4EB4FULL;
	__u32 index = (mixed ^ mixed >> 32) * 0x9E3779B97F4A7C15ULL >> (64 - RECENT_BITS);

	return bpf_map_lookup_elem(&m6p_recent_v1, &index);
}

ALWAYS int is_of(const struct recent *recent, const struct trait *trait)
{
	return is_same(&recent->of.at.src, &trait->at.src) &&
	       is_same(&recent->of.at.dst, &trait->at.dst) && recent->of.first == trait->first &&
	       recent->of.ports == trait->ports && recent->of.next_header == trait->next_header &&
	       recent->of.generation == trait->generation;
}

/* NULL when nothing is known. */
ALWAYS struct recent *recent_of(const struct trait *trait)
{
	struct recent *recent = place_of(trait);

	return recent && is_of(recent, trait) ? recent : NULL;
}

/* The flow's place, in which another flow's may have stood. */
ALWAYS struct recent *claim(const struct trait *trait)
{
	struct recent *recent = place_of(trait);

	if (recent && !is_of(recent, trait)) {
		recent->settled_until_ns = 0;
		recent->way.until_ns = 0;
		recent->of = *trait;
	}
	return recent;
}

ALWAYS void settle(const struct trait *trait, __u64 now_ns)
{
	struct recent *recent = claim(trait);

	if (recent)
		recent->settled_until_ns = now_ns + SETTLED_NS;
}

ALWAYS int is_settled(const struct recent *recent)
{
	return recent && now() < recent->settled_until_ns;
}

/* --- express ------------------------------------------------------------------------------- */

/* Whether nothing but a trait, the size and the hop limit decides what the stack does with it. */
ALWAYS int is_usual(const struct __sk_buff *skb, const struct settings *settings,
		    const struct view *view)
{
	__u8 next_header = view->head.next_header;

	return view->has_upper && !is_chained(next_header) && next_header != NEXT_FRAGMENT &&
	       next_header != NEXT_ICMPV6 && !(skb->mark & ~(0xFFU << (settings->mark_shift & 31)));
}

/* The packet leaves here by the gateway's own routing: what follows it may come straight. */
ALWAYS void learn(struct __sk_buff *skb, const struct settings *settings, const struct view *view,
		  __u32 number)
{
	__u32 octets = wire_octets(skb, ETH_HLEN, view);
	struct recent *recent;
	struct trait trait;
	__u64 now_ns = now();

	if (now_ns >= settings->express_until_ns || !skb->ingress_ifindex || skb->ingress_ifindex == skb->ifindex || !octets ||
	    !is_usual(skb, settings, view))
		return;
	describe(&trait, settings, view);
	recent = claim(&trait);
	if (!recent || bpf_skb_load_bytes(skb, 0, recent->way.link, ETH_HLEN))
		return;
	if (now_ns < recent->way.until_ns && recent->way.octets > octets)
		octets = recent->way.octets;
	recent->way.octets = octets;
	recent->way.ingress = skb->ingress_ifindex;
	recent->way.egress = skb->ifindex;
	recent->way.number = number;
	recent->way.until_ns = now_ns + WAY_NS;
}

/* A packet that Python need not see, where it leaves: at an uplink on its ULIDs, or at the LAN. */
ALWAYS int note_way(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings)
{
	struct view view;

	if (settings->express_until_ns && link_octets == ETH_HLEN && see(skb, link_octets, &view))
		learn(skb, settings, &view, MARK_PAST);
	return PASS;
}

/* Egress of a LAN interface: the packets themselves are not touched. */
ALWAYS int to_lan(struct __sk_buff *skb)
{
	const struct settings *settings;

	if (!skb->mark)
		return PASS;
	settings = settings_of();
	if (!settings || number_of(skb, settings) != MARK_PAST)
		return PASS;
	return note_way(skb, ETH_HLEN, settings);
}

ALWAYS void give_up(struct recent *recent)
{
	recent->way.until_ns = 0;
}

/* The way that is right for this packet, or NULL. */
ALWAYS const struct way *way_of(struct __sk_buff *skb, __u32 link_octets,
				const struct settings *settings, const struct view *view,
				struct recent *recent, __u32 ingress, __u32 number)
{
	__u64 now_ns;
	__u32 octets;

	if (!recent || !recent->way.until_ns || link_octets != ETH_HLEN)
		return NULL;
	now_ns = now();
	if (now_ns >= recent->way.until_ns || now_ns >= settings->express_until_ns)
		return NULL;
	octets = wire_octets(skb, link_octets, view);
	if (octets && octets <= recent->way.octets && view->head.hop_limit > 1 &&
	    recent->way.ingress == ingress && recent->way.number == number &&
	    is_usual(skb, settings, view) && skb->len == link_octets + view->octets)
		return &recent->way;
	give_up(recent);
	return NULL;
}

/* The link-layer header of the way; the checksum of a received packet does not cover it. */
ALWAYS int address_link(struct __sk_buff *skb, const struct way *way)
{
	return bpf_skb_store_bytes(skb, 0, way->link, ETH_HLEN, 0);
}

ALWAYS int express(struct __sk_buff *skb, const struct settings *settings, const struct way *way)
{
	set_mark(skb, settings, MARK_NONE);
	count(COUNT_EXPRESS);
	return bpf_redirect(way->egress, 0);
}

/* A packet that is as it has to be: on by the way of its flow, or with a mark into the stack. */
ALWAYS int onward(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		  const struct view *view, struct recent *recent, __u32 ingress)
{
	const struct way *way =
		way_of(skb, link_octets, settings, view, recent, ingress, MARK_PAST);
	__u8 hop_limit = view->head.hop_limit - 1;

	if (!way) {
		set_mark(skb, settings, MARK_PAST);
		return PASS;
	}
	if (address_link(skb, way) ||
	    bpf_skb_store_bytes(skb, link_octets + __builtin_offsetof(struct head, hop_limit),
				&hop_limit, 1, BPF_F_RECOMPUTE_CSUM))
		return drop(COUNT_DROP_NO_ROOM);
	return express(skb, settings, way);
}

#endif
