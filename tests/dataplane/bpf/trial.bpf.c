// What the loader's tests load: one program for each thing that a loader has to get right.
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct key {
	__u8 local[16];
	__u8 peer[16];
};

struct entry {
	__u32 mark;
	__u16 flags;
	__u8 uplink;
	__u8 spare;
	__u64 seen_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct key);
	__type(value, struct entry);
} pairs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 256);
	__type(key, __u64);
	__type(value, __u32);
} misses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

static const __u32 table[4] = { 11, 22, 33, 44 };

static __always_inline void count(__u32 number)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &number);

	if (counter)
		*counter += 1;
}

static __always_inline int is_udp(struct __sk_buff *skb)
{
	__u8 next = 0;

	return !bpf_skb_load_bytes(skb, 14 + 6, &next, 1) && next == 17;
}

// Counts every UDP packet and lets it pass.
SEC("tc/pass")
int count_all(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 *packets = bpf_map_lookup_elem(&seen, &zero);

	if (packets && is_udp(skb))
		__sync_fetch_and_add(packets, 1);
	count(0);
	return TC_ACT_UNSPEC;
}

// The successor of count_all, which counts elsewhere.
SEC("tc/pass2")
int count_all_again(struct __sk_buff *skb)
{
	__u32 one = 1;
	__u64 *packets = bpf_map_lookup_elem(&seen, &one);

	if (packets && is_udp(skb))
		__sync_fetch_and_add(packets, 1);
	return TC_ACT_UNSPEC;
}

// Marks the packets of known pairs with a value from a table of constants.
SEC("tc/mark")
int mark_pair(struct __sk_buff *skb)
{
	struct key key;
	struct entry *entry;

	if (bpf_skb_load_bytes(skb, 14 + 8, &key, sizeof(key)) < 0)
		return TC_ACT_SHOT;
	entry = bpf_map_lookup_elem(&pairs, &key);
	if (!entry) {
		count(1);
		return TC_ACT_UNSPEC;
	}
	skb->mark = entry->mark + *(volatile const __u32 *)&table[entry->uplink & 3];
	entry->seen_ns = bpf_ktime_get_ns();
	return TC_ACT_OK;
}

// Sends the first 64 octets of each packet up.
SEC("tc/tell")
int tell(struct __sk_buff *skb)
{
	__u8 *record = bpf_ringbuf_reserve(&events, 64, 0);

	if (!record)
		return TC_ACT_UNSPEC;
	if (bpf_skb_load_bytes(skb, 0, record, 64) < 0)
		bpf_ringbuf_discard(record, 0);
	else
		bpf_ringbuf_submit(record, 0);
	return TC_ACT_UNSPEC;
}

SEC("xdp")
int pass_early(struct xdp_md *context)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
