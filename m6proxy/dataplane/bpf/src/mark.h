/* Our 8 bits of the packet's mark, and what the settings say of addresses and interfaces.
 *
 * High nibble 8: ours. Low nibble: 1 to 14 the uplink to leave by, 15 past the queue. High nibble 9:
 * by that uplink, but a daemon that lives sees it first, and takes the mark off; with 15: regroup_in
 * has made what uplink_in is about to see.
 */
#ifndef M6PROXY_MARK_H
#define M6PROXY_MARK_H

#include "packet.h"
#include <linux/if_packet.h>

#define MARK_NONE 0
#define MARK_PAST 15
#define MARK_OURS 0x80
#define MARK_SHOWN 0x90
#define MARK_REGROUPED (MARK_SHOWN | MARK_PAST)
#define MARK_EITHER 0xE0

ALWAYS __u32 bits_of(const struct __sk_buff *skb, const struct settings *settings)
{
	return skb->mark >> (settings->mark_shift & 31) & 0xFF;
}

/* MARK_NONE when the mark is not ours. */
ALWAYS __u32 number_of(const struct __sk_buff *skb, const struct settings *settings)
{
	__u32 bits = bits_of(skb, settings);

	return (bits & MARK_EITHER) == MARK_OURS ? bits & 0x0F : MARK_NONE;
}

ALWAYS void set_bits(struct __sk_buff *skb, const struct settings *settings, __u32 bits)
{
	__u32 shift = settings->mark_shift & 31;

	barrier_var(skb); /* two stores must not become one through a computed pointer */
	skb->mark = (skb->mark & ~(0xFFU << shift)) | bits << shift;
}

ALWAYS void set_mark(struct __sk_buff *skb, const struct settings *settings, __u32 number)
{
	set_bits(skb, settings, number == MARK_NONE ? 0 : MARK_OURS | number);
}

/* At an ingress: what came inside a tunnel has the mark that the outer packet got from us. */
ALWAYS void unmark(struct __sk_buff *skb, const struct settings *settings)
{
	if (skb->mark && (bits_of(skb, settings) & MARK_EITHER) == MARK_OURS)
		set_mark(skb, settings, MARK_NONE);
}

ALWAYS const struct prefix *prefix_of(const struct settings *settings, const struct address *address)
{
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < PREFIXES_MAX; i++) {
		const struct prefix *prefix = &settings->prefixes[i];

		if (i >= settings->n_prefixes)
			break;
		if ((address->high & prefix->mask.high) == prefix->network.high &&
		    (address->low & prefix->mask.low) == prefix->network.low)
			return prefix;
	}
	return NULL;
}

/* Whether no host can have an address of the prefix: it is locator-only. */
ALWAYS int is_nobodys(const struct prefix *prefix, const struct address *address)
{
	return (prefix->flags & PREFIX_NOBODYS) ||
	       ((address->high & prefix->marks.high) | (address->low & prefix->marks.low)) != 0;
}

/* The number of the uplink that a packet came by; MARK_NONE when it is not configured. */
ALWAYS __u32 uplink_number(const struct settings *settings, __u32 ifindex)
{
#pragma clang loop unroll(disable)
	for (__u32 number = 1; number < MARK_PAST; number++)
		if (settings->uplinks[number] == ifindex)
			return number;
	return MARK_NONE;
}

#endif
