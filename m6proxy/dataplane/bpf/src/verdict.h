/* How a packet leaves a program, and what every program asks for first. */
#ifndef M6PROXY_VERDICT_H
#define M6PROXY_VERDICT_H

#include "packet.h"

/* The clock of the last tick: up to 10 ms behind, and a third of the price. */
ALWAYS __u64 now(void)
{
	return bpf_ktime_get_coarse_ns();
}

ALWAYS void count(__u32 cause)
{
	__u64 *value = bpf_map_lookup_elem(&m6p_count_v2, &cause);

	if (value)
		*value += 1;
}

ALWAYS int slow(__u32 cause)
{
	count(cause);
	return PASS;
}

ALWAYS int drop(__u32 cause)
{
	count(cause);
	return DROP;
}

ALWAYS const struct settings *settings_of(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&m6p_settings_v4, &zero);
}

#endif
