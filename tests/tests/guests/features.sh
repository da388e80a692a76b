# What a lab needs of its kernel, tried one by one as root in a machine. Prints a line for each; ends 1 where one is missing.
# No network, no programs but those of the example image.
#
# It makes links, mounts and firewall rules: only in a machine of a lab, never where somebody tries it by hand.
grep -q "console=hvc0 .*rdinit=/init" /proc/cmdline || {
    echo "error: this is no machine of a lab: nothing was tried" >&2
    exit 2
}
failed=0
try() { # try NAME COMMAND: the command's words where it fails
    if said=$(sh -ec "$2" 2>&1); then echo "ok $1"; else echo "MISSING $1: $(echo "$said" | tr '\n' ';' | cut -c1-300)"; failed=1; fi
}
call() { # call NAME PYTHON: an expression with syscall(number, arguments...), which must not be negative
    try "$1" "python3 -c 'import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*words):
    libc.syscall.restype = ctypes.c_long
    return libc.syscall(*(ctypes.c_long(word) if isinstance(word, int) else word for word in words))
assert $2 >= 0, ctypes.get_errno()'"
}

for module in btrfs xfs vfat squashfs erofs fuse overlay dm_mod dm_crypt dm_thin_pool dm_snapshot dm_raid dm_integrity md_mod raid1 raid456 nbd \
    wireguard vxlan geneve br_netfilter 8021q macvlan macvtap ipvlan dummy bonding tun veth ip_vs ip_vs_rr nf_conntrack xt_conntrack xt_policy \
    xt_set xt_u32 xt_bpf xt_recent xt_hashlimit ebtable_filter arptable_filter nft_compat ip_set ip_set_hash_net nfs nfsv4 zram; do
    try "module $module" "modprobe $module"
done
for type in ext2 ext3 ext4 btrfs xfs squashfs erofs overlay nfs4 fuse; do
    try "file system $type" "grep -qw $type /proc/filesystems"
done
cd /run
try 'device mapper' 'test -c /dev/mapper/control'
try 'network block device' 'test -b /dev/nbd0'
try 'loop device' 'truncate -s 1M loop.img && device=$(losetup -f --show loop.img) && losetup -d "$device"'
try 'user namespace' 'unshare --user --map-root-user --mount --pid --fork true'
try 'network, ipc, uts, cgroup, time namespaces' 'unshare --net --ipc --uts --cgroup --time true'
try 'overlay' 'mkdir -p low up work all && touch low/a && mount -t tmpfs none up && mkdir up/u up/w &&
    mount -t overlay -o lowerdir=low,upperdir=up/u,workdir=up/w none all && test -e all/a && umount all up'
try 'overlay in a user namespace' 'unshare --user --map-root-user --mount sh -ec "mount -t tmpfs none up && mkdir up/u up/w &&
    mount -t overlay -o lowerdir=low,upperdir=up/u,workdir=up/w,userxattr none all"'
try 'bridge and veth' 'ip link add t-br type bridge vlan_filtering 1 && ip link add t-a type veth peer name t-b && ip link set t-a master t-br &&
    ip link set t-br up && ip link set t-a up && ip link set t-b up'
try 'bridges pass netfilter' 'test -e /proc/sys/net/bridge/bridge-nf-call-iptables'
try 'vlan' 'ip link add link t-b name t-b.5 type vlan id 5'
try 'vxlan' 'ip link add t-vx type vxlan id 7 dstport 4789 dev t-b'
try 'wireguard' 'ip link add t-wg type wireguard'
try 'tun' 'ip tuntap add dev t-tun mode tun && ip link del t-tun'
try 'delay on a link' 'tc qdisc add dev t-b root netem delay 1ms'
try 'nftables' 'nft add table inet t && nft add chain inet t post "{ type nat hook postrouting priority 100; }" &&
    nft add rule inet t post ip saddr 10.0.0.0/8 ct state new counter masquerade && nft add set inet t s "{ type ipv4_addr; }" && nft delete table inet t'
try 'iptables, legacy' 'iptables-legacy -t nat -A POSTROUTING -s 10.1.0.0/16 -m addrtype ! --dst-type LOCAL -m comment --comment t -j MASQUERADE &&
    iptables-legacy -t nat -F && iptables-legacy -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT && iptables-legacy -F FORWARD'
try 'iptables, nft' 'iptables-nft -t nat -A POSTROUTING -s 10.2.0.0/16 -m addrtype ! --dst-type LOCAL -m comment --comment t -j MASQUERADE &&
    iptables-nft -t nat -F && iptables-nft -A FORWARD -m statistic --mode random --probability 0.5 -m mark --mark 1 -j ACCEPT && iptables-nft -F'
try 'ip6tables, nft' 'ip6tables-nft -t nat -A POSTROUTING -s fd00::/64 -j MASQUERADE && ip6tables-nft -t nat -F'
try 'ipvs' 'test -e /proc/net/ip_vs'
call 'landlock' 'syscall(444, 0, 0, 1) - 1'
call 'bpf map' 'syscall(321, 0, ctypes.create_string_buffer(struct.pack("<5I", 1, 4, 4, 1, 0), 120), 120)'
call 'bpf program' 'syscall(321, 5, (lambda code, license: ctypes.create_string_buffer(struct.pack("<IIQQ", 1, 2,
    ctypes.addressof(code), ctypes.addressof(license)), 120))(globals().setdefault("c", ctypes.create_string_buffer(struct.pack("<QQ", 0xb7, 0x95))),
    globals().setdefault("l", ctypes.create_string_buffer(b"GPL"))), 120)'
call 'io_uring' 'syscall(425, 1, ctypes.create_string_buffer(120))'
call 'userfaultfd' 'syscall(323, 0)'
call 'seccomp' '-libc.prctl(21)'
for controller in cpuset cpu io memory hugetlb pids; do
    try "cgroup v2 controller $controller" "grep -qw $controller /sys/fs/cgroup/cgroup.controllers"
done
try 'vsock' 'test -c /dev/vsock'
# Bit 5 of what the driver took (VIRTIO 1.2, 5.5.3: VIRTIO_BALLOON_F_PAGE_REPORTING); device type 5.
try 'balloon with page reporting' 'for at in /sys/bus/virtio/devices/*; do
    if [ "$(cat "$at/device")" = 0x0005 ]; then grep -q "^.....1" "$at/features" && exit 0; fi; done; exit 1'
try 'power button' 'grep -q "Power Button" /sys/class/input/input*/name'
try 'hardware randomness' 'grep -q virtio /sys/class/misc/hw_random/rng_available'
exit "$failed"
