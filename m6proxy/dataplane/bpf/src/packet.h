/* Reading a packet: the fixed header on the stack, and what stands right behind it. */
#ifndef M6PROXY_PACKET_H
#define M6PROXY_PACKET_H

#include "maps.h"
#include <bpf/bpf_endian.h>
#include <linux/if_ether.h>

#define NEXT_HOP_BY_HOP 0
#define NEXT_TCP 6
#define NEXT_UDP 17
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_AH 51
#define NEXT_ICMPV6 58
#define NEXT_DESTINATION 60
#define NEXT_SHIM 140

#define OPTION_TAG 0x9E /* m6proxy/wire: the destination option with a context tag */
#define OPTION_TAG_OCTETS 4

#define HEADER_OCTETS 40
#define GROWTH_OCTETS 8
#define HEADERS_MAX 8 /* m6proxy/wire/ipv6.py MAX_HEADERS */
#define LABEL_MASK bpf_htonl(0xFFFFF)

/* What a program says of a packet that it does not send elsewhere: other programs go on. */
#define PASS (-1)
#define DROP 2

#define ALWAYS static __always_inline

struct head {
	__u32 first;
	__u16 payload_octets; /* network order */
	__u8 next_header;
	__u8 hop_limit;
	struct pair at;
};

struct view {
	struct head head;
	__u64 upper;      /* the octets behind the fixed header */
	__u32 octets;     /* of the whole packet, by its header */
	__u32 has_upper;
};

ALWAYS int is_same(const struct address *a, const struct address *b)
{
	return ((a->high ^ b->high) | (a->low ^ b->low)) == 0;
}

ALWAYS int is_chained(__u8 next_header)
{
	return next_header == NEXT_HOP_BY_HOP || next_header == NEXT_ROUTING ||
	       next_header == NEXT_DESTINATION;
}

ALWAYS __u8 upper_octet(const struct view *view, __u32 at)
{
	return bpf_be64_to_cpu(view->upper) >> (56 - 8 * at);
}

/* 0 when the packet is none of ours: not IPv6, for another machine or VLAN, or cut short. */
ALWAYS int see(struct __sk_buff *skb, __u32 link_octets, struct view *view)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u32 wanted = link_octets + HEADER_OCTETS + sizeof(view->upper);

	if (skb->protocol != bpf_htons(ETH_P_IPV6) || skb->vlan_present)
		return 0;
	if (data + wanted > end) {
		bpf_skb_pull_data(skb, skb->len < wanted ? skb->len : wanted);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	if (data + link_octets + HEADER_OCTETS > end)
		return 0;
	view->head = *(const struct head *)(data + link_octets); /* in words, aligned or not */
	view->octets = HEADER_OCTETS + bpf_ntohs(view->head.payload_octets);
	view->upper = 0;
	view->has_upper = 0;
	if (data + wanted <= end && view->octets >= HEADER_OCTETS + sizeof(view->upper)) {
		view->upper = *(const __u64 *)(data + link_octets + HEADER_OCTETS);
		view->has_upper = 1;
	}
	return (view->head.first & bpf_htonl(0xF0000000)) == bpf_htonl(0x60000000) &&
	       view->octets <= skb->len - link_octets;
}

/* Where a chain of hop-by-hop options, routing headers and destination options ends. */
enum chain_end {
	CHAIN_PLAIN, /* before something that no shim header and no ICMPv6 error is behind, and no tag */
	CHAIN_OTHER, /* anything else, or malformed */
};

ALWAYS enum chain_end walk(struct __sk_buff *skb, __u32 link_octets, const struct view *view)
{
	__u32 offset = HEADER_OCTETS;
	__u8 next_header = view->head.next_header;
	__u8 link[4];

#pragma clang loop unroll(disable)
	for (int i = 0; i < HEADERS_MAX; i++) {
		if (offset + 8 > view->octets ||
		    bpf_skb_load_bytes(skb, link_octets + offset, link, sizeof(link)))
			return CHAIN_OTHER;
		if (next_header == NEXT_DESTINATION && link[1] == 0 && link[2] == OPTION_TAG &&
		    link[3] == OPTION_TAG_OCTETS)
			return CHAIN_OTHER;
		next_header = link[0];
		offset += 8 + (__u32)link[1] * 8;
		if (offset > view->octets)
			return CHAIN_OTHER;
		if (!is_chained(next_header))
			break;
	}
	if (is_chained(next_header) || next_header == NEXT_SHIM || next_header == NEXT_FRAGMENT ||
	    next_header == NEXT_AH || next_header == NEXT_ICMPV6)
		return CHAIN_OTHER;
	return CHAIN_PLAIN;
}

/* The largest packet on the link that this one becomes; 0 when that cannot be told. */
ALWAYS __u32 wire_octets(struct __sk_buff *skb, __u32 link_octets, const struct view *view)
{
	__u8 data_offset;

	if (!skb->gso_size)
		return view->octets;
	if (view->head.next_header == NEXT_UDP)
		return HEADER_OCTETS + 8 + skb->gso_size;
	if (view->head.next_header != NEXT_TCP ||
	    bpf_skb_load_bytes(skb, link_octets + HEADER_OCTETS + 12, &data_offset, 1))
		return 0;
	return HEADER_OCTETS + (data_offset >> 4) * 4 + skb->gso_size;
}

#endif
