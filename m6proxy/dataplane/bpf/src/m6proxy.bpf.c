/* The kernel's half of the data plane (README.md beside it).
 *
 * lan_in    tcx ingress of a LAN interface    marks what goes past the queue, and by which uplink
 * lan_out   tcx egress of a LAN interface     sees where packets leave for the hosts
 * uplink_out tcx egress of an uplink          gives marked packets their locators
 * uplink_in tcx ingress of an uplink          gives re-homed packets their ULIDs back
 * split_in, regroup_in                        the two ends of a veth pair of ours (see rewrite.h,
 *                                             restore.h), where offloads meet the shim header
 *
 * A packet without our mark goes to Python by the rules. Programs whose name ends in _l3 are
 * for interfaces without a link-layer header (PPP, tunnels).
 */
#include "restore.h"
#include "rewrite.h"

#define PROGRAM(name, verdict)                                                                     \
	SEC("tc/" #name)                                                                           \
	int name(struct __sk_buff *skb)                                                            \
	{                                                                                          \
		return verdict;                                                                    \
	}

PROGRAM(lan_in, from_lan(skb, ETH_HLEN))
PROGRAM(lan_in_l3, from_lan(skb, 0))
PROGRAM(lan_out, to_lan(skb))
PROGRAM(uplink_out, to_uplink(skb, ETH_HLEN))
PROGRAM(uplink_out_l3, to_uplink(skb, 0))
PROGRAM(uplink_in, from_uplink(skb, ETH_HLEN))
PROGRAM(uplink_in_l3, from_uplink(skb, 0))
PROGRAM(split_in, after_split(skb))
PROGRAM(regroup_in, after_regroup(skb))

char LICENSE[] SEC("license") = "GPL";
