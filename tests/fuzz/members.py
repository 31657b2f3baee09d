"""Members and globals that tables follow or believe: what is worth bending."""

from __future__ import annotations

#: Members that tables follow or believe, by structure.
MEMBERS = {
    "task_struct": [
        "tasks.next", "tasks.prev", "thread_node.next", "thread_node.prev", "pid", "tgid", "comm",
        "__state|state", "exit_state", "flags", "prio", "static_prio", "start_boottime",
        "real_parent", "real_cred", "signal", "mm", "fs", "cgroups", "worker_private",
        "utime", "stime", "se.sum_exec_runtime", "prev_cputime.utime",
    ],
    "signal_struct": [
        "thread_head.next", "thread_head.prev", "nr_threads", "utime", "sum_sched_runtime",
        "prev_cputime.stime",
    ],
    "mm_struct": [
        "pgd", "exe_file", "arg_start", "arg_end", "env_end", "total_vm", "rss_stat",
        "env_start", "brk", "map_count", "mm_mt.ma_root", "mm_rb.rb_node",
    ],
    "page": [
        "flags", "compound_head|compound_info", "mapping", "page_type", "_refcount.counter",
        "private",
    ],
    "fs_struct": ["pwd.mnt", "pwd.dentry", "root.mnt", "root.dentry"],
    "cred": ["uid", "gid", "euid", "egid"],
    "dentry": ["d_parent", "d_name.name", "d_name.len", "d_hash.pprev"],
    "mount": [
        "mnt.mnt_root", "mnt_parent", "mnt_mountpoint", "mnt.mnt_sb", "mnt.mnt_flags",
        "mnt_devname", "mnt_node.rb_left", "mnt_node.rb_right", "mnt_list.next",
    ],
    "kernfs_node": ["parent|__parent", "name"],
    "kthread": ["data", "full_name"],
    "module": [
        "list.next", "list.prev", "name", "state", "refcnt", "taints",
        "source_list.next", "source_list.prev",
    ],
    "btf_module": ["list.next", "module", "btf"],
    "printk_ringbuffer": [
        "desc_ring.count_bits", "desc_ring.descs", "desc_ring.infos", "desc_ring.head_id",
        "desc_ring.tail_id", "text_data_ring.size_bits", "text_data_ring.data",
    ],
    "prb_desc": ["state_var", "text_blk_lpos.begin", "text_blk_lpos.next"],
    "printk_info": ["seq", "ts_nsec", "text_len", "facility", "level"],
    "timekeeper": [
        "offs_real", "offs_boot", "xtime_sec", "tkr_mono.xtime_nsec", "tkr_mono.shift",
    ],
    "files_struct": ["fdt"],
    "fdtable": ["max_fds", "fd", "close_on_exec"],
    "file": ["f_flags", "f_pos", "f_mode", "f_inode", "f_path.mnt", "f_path.dentry", "f_op",
        "private_data"],
    "inode": ["i_mode", "i_ino", "i_sb"],
    "super_block": ["s_list.next", "s_type", "s_fs_info", "s_op", "s_flags", "s_inodes.next"],
    "shmem_sb_info": ["max_blocks", "max_inodes", "used_blocks.count", "used_blocks.counters"],
    "vm_area_struct": [
        "vm_mm", "vm_start", "vm_end", "vm_flags", "vm_ops", "vm_private_data", "vm_file",
        "vm_rb.rb_left", "vm_rb.rb_right",
    ],
    "maple_node": ["mr64.pivot", "mr64.slot", "ma64.pivot", "ma64.slot"],
    "nsproxy": ["mnt_ns", "uts_ns", "net_ns", "pid_ns_for_children", "time_ns"],
    "mnt_namespace": ["mounts.rb_node", "list.next", "ns.inum", "user_ns"],
    "pid_namespace": ["parent", "user_ns", "ns.inum"],
    "user_namespace": ["parent", "owner", "ns.inum"],
    "uts_namespace": ["name.nodename", "user_ns", "ns.inum"],
    "pid": ["level", "numbers"],
    "cgroup": [
        "self.flags", "self.parent", "self.serial_nr", "self.sibling.next", "self.children.next",
        "kn", "level", "psi", "rstat_cpu|rstat_base_cpu", "bstat", "last_bstat", "prev_cputime",
        "subsys[1]", "subsys[4]", "subsys[11]", "nr_populated_domain_children",
    ],
    "css_set": ["cgrp_links.next", "cgrp_links.prev", "dfl_cgrp"],
    "mem_cgroup": ["memory.usage", "memory.max", "swap.usage", "memory_events"],
    "psi_group": ["pcpu", "avg_last_update", "avg_next_update", "total", "avg", "enabled"],
    "kmem_cache": ["name", "size", "oo", "list.next", "list.prev", "node[0]|per_node[0].node"],
    "kmem_cache_node": ["nr_partial", "partial.next", "nr_slabs", "total_objects"],
    "net": [
        "list.next", "ns.inum", "dev_base_head.next", "unx.table.buckets", "packet.sklist.first",
        "ipv4.tcp_death_row.hashinfo", "ipv4.udp_table",
    ],
    "net_device": [
        "dev_list.next", "name", "mtu", "flags", "state", "operstate", "dev_addr", "addr_len",
        "ip_ptr", "ip6_ptr", "netdev_ops", "tstats", "ifindex", "stats.rx_bytes",
    ],
    "in_device": ["ifa_list"],
    "inet6_dev": ["addr_list.next"],
    "sock": [
        "__sk_common.skc_node.next", "__sk_common.skc_family", "__sk_common.skc_state",
        "__sk_common.skc_net", "__sk_common.skc_num", "sk_type", "sk_protocol", "sk_socket",
    ],
    "unix_sock": ["addr"],
    "socket": ["sk"],
    "inet_hashinfo": ["ehash", "ehash_mask", "lhash2", "lhash2_mask"],
    "udp_table": ["hash", "mask"],
    "netlink_table": ["hash.tbl"],
    "bucket_table": ["size", "nest", "future_tbl", "buckets"],
    "fib_alias": ["fa_list.next", "fa_info", "fa_slen", "tb_id", "fa_type"],
    "fib_info": ["fib_nhs", "fib_metrics", "fib_prefsrc", "nh", "fib_protocol", "fib_priority"],
    "fib6_info": [
        "fib6_next", "fib6_table", "fib6_dst.plen", "fib6_type", "fib6_metrics", "nh",
        "fib6_src.plen", "fib6_nsiblings",
    ],
    "fib6_node": ["left", "right", "subtree", "leaf", "fn_flags"],
    "fib_nh_common": ["nhc_oif", "nhc_gw_family", "nhc_weight", "nhc_flags"],
    "trie": ["kv"],
    "neigh_table": ["nht", "phash_buckets"],
    "neigh_hash_table": ["hash_buckets|hash_heads", "hash_shift"],
    "bpf_prog": ["aux", "len", "jited_len", "type", "tag", "expected_attach_type"],
    "bpf_map": ["map_type", "id", "max_entries", "name", "frozen"],
    "idr": ["idr_rt.xa_head", "idr_base"],
    "timer_list": ["entry.next", "function", "expires", "flags"],
    "hrtimer": ["node.expires", "function", "is_soft"],
    "ctl_dir": ["root.rb_node"],
    "ctl_table": ["procname", "data", "maxlen", "mode", "proc_handler"],
    "ctl_table_header": ["ctl_table", "node"],
}  # fmt: skip

#: Globals whose first words are worth bending.
GLOBALS = [
    "init_task", "modules", "btf_modules", "prb", "saved_command_line", "vmcoreinfo_data",
    "page_offset_base", "__per_cpu_offset", "__cpu_possible_mask", "__cpu_online_mask",
    "init_uts_ns", "linux_banner", "init_top_pgt", "net_namespace_list", "tcp_hashinfo",
    "udp_table", "raw_v4_hashinfo", "nl_table", "cgroup_roots", "cgrp_dfl_root", "slab_caches",
    "nr_node_ids", "psi_period", "ns_unified_root", "mnt_ns_tree",
]  # fmt: skip
