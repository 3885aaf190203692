/* What Python and the programs share: entries, events, counters, maps.
 *
 * m6proxy/dataplane/bpf/layout.py has the same in Python; a test compares it with the BTF of
 * the object. Whoever changes a struct gives its map the next version: the name ends in it.
 * Times are nanoseconds of CLOCK_MONOTONIC. Addresses are as on the wire.
 */
#ifndef M6PROXY_MAPS_H
#define M6PROXY_MAPS_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define PREFIXES_MAX 16
#define UPLINKS_MAX 16
#define LOCATORS_MAX 4
#define DNS_OCTETS_MAX 1472

struct address {
	__u64 high;
	__u64 low;
};

struct pair {
	struct address src;
	struct address dst;
};

enum mode {
	MODE_ULIDS = 0,
	MODE_EXTHDR = 1,
	MODE_FLOWLABEL = 2,
	MODE_IDENTIFIER = 3,
	MODE_DSTOPT = 4,
};

/* An outbound packet of a context, found by its ULIDs. */
enum out_flags {
	OUT_SLOW = 1,    /* every packet is for Python */
	OUT_WATCHED = 2, /* the same while somebody attends */
};

struct out_flow {
	struct pair locators;
	__u8 tail[8];   /* the inserted header; octet 0 is left for the next header */
	__u32 label;    /* flow label as in the first word of the packet, network order */
	__u32 mtu;      /* octets that the path carries, ours included */
	__u8 mode;
	__u8 uplink;    /* number, from 1; with MODE_ULIDS that of the ULID's prefix */
	__u16 flags;
	__u32 slot;     /* in the activity array */
};

/* An inbound packet of a re-homed context, found by what its mode says. */
enum in_flags {
	IN_COMPLETE = 1, /* no locator of the context is missing below */
};

struct in_flow {
	struct pair ulids; /* peer, local: as the packet gets them */
	__u32 slot;
	__u8 n_peer;
	__u8 n_local;
	__u16 flags;
	struct address peer[LOCATORS_MAX];
	struct address local[LOCATORS_MAX];
};

/* An inbound packet found by its addresses alone. */
struct pair_flow {
	struct pair ulids; /* peer, local: with MODE_IDENTIFIER the packet gets them */
	__u32 slot;
	__u8 mode;         /* MODE_ULIDS or MODE_IDENTIFIER */
	__u8 spare[3];
};

/* What a re-homed flow in mode flowlabel or identifier looks like on the wire. */
#define SENT_UNTAGGED 0xFFFFFFFF

struct sent_key {
	struct pair locators;
	__u32 label; /* network order, no other bits; or SENT_UNTAGGED */
	__u32 spare;
};

struct activity {
	__u64 last_out_ns;
	__u64 last_in_ns;
	__u64 out_since_ns; /* first packet out since the last one in; 0: none */
	__u64 in_since_ns;  /* first packet in since the last one out; 0: none */
	__u64 packets_out;
	__u64 octets_out;
	__u64 packets_in;
	__u64 octets_in;
};

/* A pair without a context, by local and peer address. */
enum miss_flags {
	MISS_OUTBOUND = 1, /* the host sent */
	MISS_ANSWERED = 2, /* the peer sent */
	MISS_SLOW = 4,     /* every packet is for Python; only user space sets it */
};

struct miss {
	__u64 first_ns;
	__u64 syn_ns;   /* first unanswered TCP SYN of the host; 0: none */
	__u64 quiet_until_ns; /* no event before; user space may set it */
	__u64 octets;
	__u64 packets;
	__u32 flags;
	__u32 spare;
};

/* By what rules, routes and their choice among several next hops tell flows apart. */
struct trait {
	struct pair at;
	__u32 first;       /* traffic class without ECN, flow label: as in the packet */
	__u32 ports;       /* what stands there behind the fixed header, whatever it is */
	__u32 next_header;
	__u32 generation;  /* of the settings: what was learned before is void */
};

/* Where the gateway's own routing sent a flow's packet, and what it put before it. */
struct way {
	__u64 until_ns;
	__u32 ingress;     /* interface index */
	__u32 egress;
	__u32 octets;      /* the largest packet that was let through */
	__u8 number;       /* the low nibble of its mark */
	__u8 link[14];     /* its Ethernet header */
	__u8 spare[5];
};

/* What the last packets of a flow showed; good for some milliseconds. */
struct recent {
	struct trait of;
	__u64 settled_until_ns; /* nobody counts it: it needs no look at the large maps */
	struct way way;
};

enum event_kind {
	EVENT_RIPE = 1,  /* a pair deserves a context */
	EVENT_AWAKE = 2, /* a context that was silent for wake_ns has traffic again */
	EVENT_DNS = 3,   /* a DNS answer went by */
};

struct event {
	__u32 kind;
	__u32 size;          /* octets of payload that follow, only with EVENT_DNS */
	__u64 now_ns;
	struct pair ulids;   /* local, peer; EVENT_RIPE */
	__u32 slot;          /* EVENT_AWAKE */
	__u32 flags;         /* EVENT_RIPE: enum ripe */
};

enum ripe {
	RIPE_THRESHOLD = 1, /* the policy's thresholds */
	RIPE_SILENT = 2,    /* TCP sends its first segment again, unanswered */
};

struct dns_event {
	struct event event;
	__u8 payload[DNS_OCTETS_MAX];
};

enum counter {
	COUNT_REWRITTEN = 0,
	COUNT_RESTORED,
	/* for Python, by why */
	COUNT_SLOW_FLAGGED,  /* user space asked for it */
	COUNT_SLOW_CHAIN,    /* extension headers */
	COUNT_SLOW_FRAGMENT,
	COUNT_SLOW_TOO_BIG,
	COUNT_SLOW_LABEL,    /* a flow label that the peer would mistake */
	COUNT_SLOW_CONTROL,
	COUNT_SLOW_TAG,      /* a tag that is nobody's */
	COUNT_SLOW_LOCATOR,  /* the tag is a context's, the addresses are not in its entry */
	COUNT_SLOW_ERROR,    /* ICMPv6 errors */
	COUNT_SLOW_POLICY,   /* a miss that Python counts itself */
	COUNT_SLOW_OVERDUE,  /* TCP that nothing answers: Python keeps it for the next path */
	COUNT_SLOW_NOBODYS,  /* to a locator-only address, and no context's: Python answers some */
	/* dropped, by why */
	COUNT_DROP_NO_FLOW,
	COUNT_DROP_WRONG_UPLINK,
	COUNT_DROP_NO_ROOM,
	COUNT_DROP_NOBODYS,  /* to a locator-only address again, soon after one that Python got */
	/* neither */
	COUNT_REDIRECTED,    /* marked for an uplink that the flow left meanwhile */
	COUNT_SPLIT,         /* GSO packets sent to be segmented */
	COUNT_REGROUPED,     /* restored packets, aggregated or not, that came from regroup_in */
	COUNT_EVENTS_LOST,
	COUNT_EXPRESS,       /* sent past the gateway's IPv6 stack */
	COUNTERS,
};

struct prefix {
	struct address network;
	struct address mask;
	struct address marks; /* locator-only addresses have one of these bits */
	__u32 flags;
	__u32 spare;
};

enum prefix_flags {
	PREFIX_SLOW = 1,    /* packets from and to here that have no context are for Python */
	PREFIX_NOBODYS = 2, /* all its addresses are locator-only */
};

enum settings_flags {
	SETTINGS_SLOW_MISSES = 1, /* all packets that have no context are for Python */
	SETTINGS_LABELS = 2,      /* some context is found by its flow label */
	SETTINGS_SENT_LABELS = 4, /* some context sends with a flow label, or bare */
	SETTINGS_BARE_UPLINK = 65536, /* times 2 to the uplink's number: it has no link-layer header */
};

struct settings {
	struct prefix prefixes[PREFIXES_MAX];
	__u32 uplinks[UPLINKS_MAX]; /* interface index by number, from 1; 0: none */
	__u32 n_prefixes;
	__u32 flags;
	__u32 mark_shift;      /* where our 8 bits stand in the mark */
	__u32 split_ifindex;   /* 0: GSO packets in mode exthdr are for Python */
	__u32 regroup_ifindex; /* 0: restored packets in mode exthdr go on singly */
	__u32 generation;      /* another one with every change, of settings or flows */
	__u64 after_octets;    /* thresholds; 0 never triggers */
	__u64 after_packets;
	__u64 after_ns;
	__u64 ask_again_ns;    /* between two EVENT_RIPE of one pair */
	__u64 wake_ns;         /* 0: no EVENT_AWAKE */
	__u64 overdue_ns;      /* TCP unanswered for so long is for Python; 0: never */
	__u64 attended_until_ns; /* user space lives: what only it can keep for later is for it */
	__u64 express_until_ns; /* nobody else would see packets in the gateway's IPv6 stack */
};

#define CONTEXTS_DEFAULT 65536

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} m6p_settings_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CONTEXTS_DEFAULT);
	__type(key, struct pair);
	__type(value, struct out_flow);
} m6p_out_v1 SEC(".maps");

/* key: mode << 56 and the tag (47 bits), the label (20 bits) or the option's tag (32 bits) */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CONTEXTS_DEFAULT);
	__type(key, __u64);
	__type(value, struct in_flow);
} m6p_tag_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CONTEXTS_DEFAULT);
	__type(key, struct pair);
	__type(value, struct pair_flow);
} m6p_pair_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CONTEXTS_DEFAULT);
	__type(key, struct sent_key);
	__type(value, __u32);
} m6p_sent_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, CONTEXTS_DEFAULT);
	__type(key, __u32);
	__type(value, struct activity);
} m6p_active_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CONTEXTS_DEFAULT);
	__type(key, struct pair);
	__type(value, struct miss);
} m6p_misses_v1 SEC(".maps");

#define RECENT_BITS 12
#define EVENTS_OCTETS (1 << 20)

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1 << RECENT_BITS);
	__type(key, __u32);
	__type(value, struct recent);
} m6p_recent_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_OCTETS);
} m6p_events_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} m6p_count_v2 SEC(".maps");

#endif
