/* What user space learns of the traffic: activity of contexts, misses, events, counters. */
#ifndef M6PROXY_ACCOUNT_H
#define M6PROXY_ACCOUNT_H

#include "recent.h"

#define SILENT_START_NS 900000000ULL /* m6proxy/shim/policy.py SILENT_START_S */
#define TCP_FLAGS_AT 13
#define TCP_SYN 0x02
#define TCP_SYN_ACK 0x12
#define DNS_PORT 53
#define UDP_OCTETS 8

ALWAYS void announce_awake(__u32 slot, __u64 now_ns)
{
	struct event *event = bpf_ringbuf_reserve(&m6p_events_v1, sizeof(*event), 0);

	if (!event) {
		count(COUNT_EVENTS_LOST);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->kind = EVENT_AWAKE;
	event->now_ns = now_ns;
	event->slot = slot;
	bpf_ringbuf_submit(event, 0);
}

ALWAYS int was_asleep(const struct settings *settings, const struct activity *activity, __u64 now_ns)
{
	__u64 last_ns = activity->last_in_ns > activity->last_out_ns ? activity->last_in_ns
								     : activity->last_out_ns;

	return settings->wake_ns && now_ns - last_ns >= settings->wake_ns;
}

ALWAYS __u32 segments(struct __sk_buff *skb)
{
	return skb->gso_segs > 1 ? skb->gso_segs : 1;
}

ALWAYS struct activity *activity_of(__u32 slot)
{
	return bpf_map_lookup_elem(&m6p_active_v1, &slot);
}

/* A packet of a context: the first one its way after some the other way begins a new wait. */
ALWAYS void note(struct __sk_buff *skb, const struct settings *settings, __u32 slot,
		 struct activity *activity, __u32 octets, int is_out)
{
	__u64 *last_ns, *since_ns, *other_since_ns, now_ns;

	if (!activity)
		return;
	last_ns = is_out ? &activity->last_out_ns : &activity->last_in_ns;
	since_ns = is_out ? &activity->out_since_ns : &activity->in_since_ns;
	other_since_ns = is_out ? &activity->in_since_ns : &activity->out_since_ns;
	now_ns = now();
	if (was_asleep(settings, activity, now_ns))
		announce_awake(slot, now_ns);
	*last_ns = now_ns;
	if (!*since_ns)
		*since_ns = now_ns;
	if (*other_since_ns)
		*other_since_ns = 0;
	__sync_fetch_and_add(is_out ? &activity->packets_out : &activity->packets_in, segments(skb));
	__sync_fetch_and_add(is_out ? &activity->octets_out : &activity->octets_in, octets);
}

ALWAYS void note_out(struct __sk_buff *skb, const struct settings *settings, __u32 slot,
		     struct activity *activity, __u32 octets)
{
	note(skb, settings, slot, activity, octets, 1);
}

ALWAYS void note_in(struct __sk_buff *skb, const struct settings *settings, __u32 slot,
		    __u32 octets)
{
	note(skb, settings, slot, activity_of(slot), octets, 0);
}

/* Whether a daemon is there. Without one a packet that nobody answers has a chance in the kernel only. */
ALWAYS int is_attended(const struct settings *settings)
{
	return now() < settings->attended_until_ns;
}

/* Nothing came in since a packet went out, for longer than any TCP waits for an acknowledgement. */
ALWAYS int is_overdue(const struct settings *settings, const struct activity *activity)
{
	return activity && settings->overdue_ns && activity->out_since_ns &&
	       now() - activity->out_since_ns >= settings->overdue_ns && is_attended(settings);
}

/* --- pairs without a context: m6proxy/shim/policy.py Accounts ---------------------------- */

ALWAYS void announce_ripe(const struct pair *ulids, struct miss *miss, __u64 now_ns, __u32 why,
			  const struct settings *settings)
{
	struct event *event = bpf_ringbuf_reserve(&m6p_events_v1, sizeof(*event), 0);

	if (!event) {
		count(COUNT_EVENTS_LOST);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->kind = EVENT_RIPE;
	event->now_ns = now_ns;
	event->ulids = *ulids;
	event->flags = why;
	miss->quiet_until_ns = now_ns + settings->ask_again_ns;
	bpf_ringbuf_submit(event, 0);
}

ALWAYS int is_silent(struct __sk_buff *skb, __u32 link_octets, struct miss *miss, __u64 now_ns)
{
	__u8 flags;

	if (bpf_skb_load_bytes(skb, link_octets + HEADER_OCTETS + TCP_FLAGS_AT, &flags, 1) ||
	    (flags & TCP_SYN_ACK) != TCP_SYN)
		return 0;
	if (!miss->syn_ns)
		miss->syn_ns = now_ns;
	return now_ns - miss->syn_ns >= SILENT_START_NS;
}

ALWAYS int has_crossed(const struct settings *settings, const struct miss *miss, __u64 now_ns)
{
	return (settings->after_octets && miss->octets >= settings->after_octets) ||
	       (settings->after_packets && miss->packets >= settings->after_packets) ||
	       (settings->after_ns && now_ns - miss->first_ns >= settings->after_ns);
}

ALWAYS struct miss *miss_of(const struct pair *ulids, __u32 direction, __u64 now_ns)
{
	struct miss *miss = bpf_map_lookup_elem(&m6p_misses_v1, ulids);
	struct miss fresh = { .first_ns = now_ns };

	if (miss || direction != MISS_OUTBOUND)
		return miss;
	bpf_map_update_elem(&m6p_misses_v1, ulids, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&m6p_misses_v1, ulids);
}

/* Count a packet of a pair (local, peer) that has no context; 0 when Python wants to see it.
 * A pair is remembered from the host's first packet on: strangers cannot fill the map. */
ALWAYS int count_miss(struct __sk_buff *skb, __u32 link_octets, const struct settings *settings,
		      const struct view *view, const struct pair *ulids, __u32 direction,
		      const struct trait *trait)
{
	__u64 now_ns = now();
	struct miss *miss = miss_of(ulids, direction, now_ns);
	__u32 why = 0;

	if (!miss) {
		if (bpf_map_lookup_elem(&m6p_out_v1, ulids))
			return 0; /* a context that wants all, but the map forgot */
		settle(trait, now_ns);
		return 1;
	}
	if (miss->flags & MISS_SLOW)
		return 0;
	if (!miss->packets)
		miss->first_ns = now_ns;
	miss->octets += view->octets;
	miss->packets += segments(skb);
	if (!(miss->flags & direction))
		miss->flags |= direction;
	if (direction == MISS_OUTBOUND && view->head.next_header == NEXT_TCP &&
	    !(miss->flags & MISS_ANSWERED) && is_silent(skb, link_octets, miss, now_ns))
		why = RIPE_SILENT;
	if (now_ns < miss->quiet_until_ns) {
		settle(trait, now_ns);
		return 1;
	}
	if (!why && has_crossed(settings, miss, now_ns))
		why = RIPE_THRESHOLD;
	if (why)
		announce_ripe(ulids, miss, now_ns, why, settings);
	return 1;
}

/* --- DNS answers: copied, not diverted ---------------------------------------------------- */

ALWAYS int is_dns_answer(const struct view *view)
{
	return view->head.next_header == NEXT_UDP && view->has_upper &&
	       bpf_be64_to_cpu(view->upper) >> 48 == DNS_PORT;
}

/* 0 when the answer is too long to copy. Half of the room is for what cannot wait for another. */
ALWAYS int copy_dns(struct __sk_buff *skb, __u32 link_octets, const struct view *view)
{
	struct dns_event *event;
	__u64 rest = view->octets - HEADER_OCTETS - UDP_OCTETS - 1;
	__u64 size;

	if (view->octets <= HEADER_OCTETS + UDP_OCTETS ||
	    bpf_ringbuf_query(&m6p_events_v1, BPF_RB_AVAIL_DATA) > EVENTS_OCTETS / 2)
		return 1;
	/* All but one octet: before Linux 6.8 the verifier learns nothing from a comparison with 0.
	 * It must see the addition where it stands here. */
	barrier_var(rest);
	if (rest >= DNS_OCTETS_MAX || skb->gso_size)
		return 0;
	barrier_var(rest);
	size = rest + 1;
	event = bpf_ringbuf_reserve(&m6p_events_v1, sizeof(*event), 0);
	if (!event)
		return 0;
	__builtin_memset(&event->event, 0, sizeof(event->event));
	event->event.kind = EVENT_DNS;
	event->event.size = size;
	event->event.now_ns = now();
	if (bpf_skb_load_bytes(skb, link_octets + HEADER_OCTETS + UDP_OCTETS, event->payload,
			       size)) {
		bpf_ringbuf_discard(event, 0);
		return 0;
	}
	bpf_ringbuf_submit(event, 0);
	return 1;
}

#endif
